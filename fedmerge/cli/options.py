"""Arguments and options that several commands share."""

from __future__ import annotations

from typing import Annotated

import typer

Simulation = Annotated[
    str,
    typer.Argument(
        metavar="[SIM.toml]",
        help="A simulation: a path, or the name of a packaged one. Default: the built-in example.",
        show_default=False,
    ),
]

NO_SETS: list[str] = []

Sets = Annotated[
    list[str],
    typer.Option("--set", metavar="KEY=VALUE", help="Set one key of the configuration; may be repeated."),
]
