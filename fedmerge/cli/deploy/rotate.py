"""`fedmerge deploy rotate`: new keys for one party."""

from __future__ import annotations

from pathlib import Path
from typing import Annotated

import typer

from fedmerge.cli.manner import Outcome


def rotate(
    folder: Annotated[Path, typer.Argument(help="What `deploy init` wrote.", metavar="OUT")],
    party: Annotated[str, typer.Argument(help='"server", or the name of a silo.', metavar="PARTY")],
) -> Outcome:
    """Make new keys and certificates for one party; the old ones are refused once the steps are done."""
    from fedmerge.deployment.rotation import rotate

    done = rotate(folder.absolute(), party)
    lines = [f"new in {folder.absolute()}: {', '.join(done.files)}", "Next:", *numbered(done.following)]
    return Outcome({"party": party, "files": done.files, "next": done.following}, lines)


def numbered(steps: tuple[str, ...]) -> list[str]:
    """Steps as a list that a person works off."""
    return [f"  {number}. {step}" for number, step in enumerate(steps, 1)]
