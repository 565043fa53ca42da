"""`fedmerge deploy init`: the parties' folders from one file."""

from __future__ import annotations

from pathlib import Path
from typing import Annotated

import typer

from fedmerge.cli.manner import Outcome


def init(
    federation: Annotated[Path, typer.Argument(help="The federation's file.", metavar="FEDERATION.toml")],
    out: Annotated[Path, typer.Option("-o", "--out", help="Where to write: a name that is free.")],
) -> Outcome:
    """Write a folder for each party: certificates, keys, commands, units, proxy, its page of instructions."""
    from fedmerge.deployment.federation import read_federation
    from fedmerge.deployment.founding import found

    made = read_federation(federation)
    folder = found(made, out.absolute())
    silos = [silo.name for silo in made.silos]
    lines = [
        f"{folder}/ca: stays with you, off the servers",
        f"{folder}/server: to the server, as {made.server.folder}",
        *(f"{folder}/silos/{silo.name}: to {silo.name}, as {silo.folder}" for silo in made.silos),
        "Next: carry each folder to its party, by a way that nobody else can read; its README.md goes on.",
    ]
    return Outcome({"folder": folder, "federation": made.name, "silos": silos}, lines)
