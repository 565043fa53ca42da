"""`fedmerge deploy revoke`: a silo is out."""

from __future__ import annotations

from pathlib import Path
from typing import Annotated

import typer

from fedmerge.cli.deploy.rotate import numbered
from fedmerge.cli.manner import Outcome


def revoke(
    folder: Annotated[Path, typer.Argument(help="What `deploy init` wrote.", metavar="OUT")],
    silo: Annotated[str, typer.Argument(help="The name of a silo.", metavar="SILO")],
) -> Outcome:
    """Take a silo out: its replies, its certificate, and its node if Flower answers (else: exit status 1)."""
    from fedmerge.deployment.revocation import revoke

    done = revoke(folder.absolute(), silo)
    known = {True: "Flower has forgotten its node", False: "Flower did not answer: its node is still known"}
    lines = [
        f"{silo} is revoked in {folder.absolute()}: {', '.join(done.files)}",
        *([known[done.unregistered]] if done.unregistered is not None else []),
        "Next:",
        *numbered(done.following),
    ]
    payload = {"silo": silo, "files": done.files, "unregistered": done.unregistered, "next": done.following}
    return Outcome(payload, lines, status=1 if done.unregistered is False else 0)
