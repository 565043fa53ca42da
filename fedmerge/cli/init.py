"""`fedmerge init`: a project to start from."""

from __future__ import annotations

import shutil
from pathlib import Path
from typing import Annotated

import typer

from fedmerge.cli.manner import Outcome
from fedmerge.cli.merge import refuse_filled

TEMPLATE = Path(__file__).parent / "template"


def init(
    folder: Annotated[
        Path, typer.Argument(help="Where to write it: a new or an empty folder.", metavar="DIR")
    ],
) -> Outcome:
    """Write a small project that runs: data of two silos, a simulation, a strategy."""
    refuse_filled(folder)
    shutil.copytree(TEMPLATE, folder, dirs_exist_ok=True)
    written = sorted(path.name for path in folder.iterdir())
    following = [f"cd {folder}", "fedmerge simulate simulation.toml"]
    lines = [f"{folder.absolute()}: {', '.join(written)}", "Next:", *(f"  {line}" for line in following)]
    return Outcome({"folder": folder.absolute(), "files": written, "next": following}, lines)
