"""`fedmerge deploy submit`: a recipe becomes a run of the federation."""

from __future__ import annotations

from pathlib import Path
from typing import Annotated

import typer

from fedmerge.cli import recipe
from fedmerge.cli.manner import Outcome
from fedmerge.cli.options import NO_SETS, Sets


def submit(
    server: Annotated[Path, typer.Argument(help="The server's folder.", metavar="SERVER")],
    simulation: Annotated[
        str, typer.Argument(help="A recipe: a path or a packaged name.", metavar="RUN.toml")
    ],
    strategy: Annotated[str, typer.Option(help="A strategy: a path, or the name of a packaged one.")] = "",
    sets: Sets = NO_SETS,
) -> Outcome:
    """Submit a run on the server's machine; the sites train on their own rows."""
    config = recipe.read(simulation, strategy, sets)
    from fedmerge.deployment.submission import deployed, submit

    run = deployed(config.flat, server.absolute())
    number = submit(server.absolute(), run.flat)
    lines = [f"run {number}, folder {run.folder}", f"Next: bin/status.sh, bin/logs.sh {number}"]
    return Outcome({"run": number, "folder": run.folder}, lines)
