"""`fedmerge deploy ...`: what the operator of a federation runs."""

from __future__ import annotations

from collections.abc import Callable
from typing import Any

import typer

from fedmerge.cli.deploy import doctor, init, revoke, rotate, submit, watch
from fedmerge.cli.manner import Command

app = typer.Typer(
    help="A federation across institutions: write the parties' files, supervise it, probe it.",
    no_args_is_help=True,
    context_settings={"help_option_names": ["-h", "--help"]},
)


def _add(name: str, command: Callable[..., Any]) -> None:
    app.command(name, cls=Command)(command)


_add("init", init.init)
_add("rotate", rotate.rotate)
_add("revoke", revoke.revoke)
_add("submit", submit.submit)
_add("watch", watch.watch)
_add("doctor", doctor.doctor)
