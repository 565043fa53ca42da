"""`fedmerge doctor`: what is wrong with this machine, and what to do about it."""

from __future__ import annotations

from collections.abc import Iterable, Iterator
from pathlib import Path
from typing import TYPE_CHECKING

from fedmerge.cli import recipe
from fedmerge.cli.checks import BROKEN, NOTE, OK, Check, disk, machine
from fedmerge.cli.manner import Outcome
from fedmerge.cli.options import NO_SETS, Sets, Simulation
from fedmerge.errors import FedMergeError

if TYPE_CHECKING:
    from rich.console import RenderableType
    from rich.table import Table

    from fedmerge.config import Config

_TROUBLE = (FedMergeError, ImportError, OSError)
_STYLES = {OK: "green", NOTE: "yellow", BROKEN: "bold red"}


def doctor(simulation: Simulation = "", sets: Sets = NO_SETS) -> Outcome:
    """Say what this machine has, what is missing, and how to mend it."""
    checks = [*machine(), *_configured(simulation, sets)]
    broken = sum(check.state == BROKEN for check in checks)
    payload = {"ok": not broken, "checks": [vars(check) for check in checks]}
    verdict = f"{broken} of {len(checks)} checks failed" if broken else "all that is needed works"
    shown: list[RenderableType] = [_table(checks), "", verdict]
    return Outcome(payload, shown, status=1 if broken else 0)


def _configured(simulation: str, sets: list[str]) -> Iterator[Check]:
    """Checks of one configuration: it can be read; base, data and device are there; runs can be written."""
    try:
        config = recipe.read(simulation, "", sets)
    except _TROUBLE as error:
        yield Check("configuration", BROKEN, str(error))
        yield disk(Path("runs"))
        return
    yield Check("configuration", OK, simulation or "the built-in example")
    yield _base(config)
    yield _data(config)
    yield _device(config)
    yield disk(config.folder)


def _base(config: Config) -> Check:
    try:
        from fedmerge.cli.base import find_base
        from fedmerge.silo.base import check_fingerprint

        folder = find_base(config.silo.base)
        found = check_fingerprint(config.silo.base)
    except _TROUBLE as error:
        return Check("base", BROKEN, str(error))
    return Check("base", OK, f"{config.silo.base.model} at {folder}, fingerprint {found[:12]}")


def _data(config: Config) -> Check:
    try:
        from fedmerge.silo.data import load_silos

        silos = load_silos(config.silo.data)
    except _TROUBLE as error:
        return Check("data", BROKEN, str(error))
    rows = sum(len(silo.train) for silo in silos.values())
    return Check("data", OK, f"{config.silo.data.source}: {len(silos)} silos, {rows} training rows")


def _device(config: Config) -> Check:
    try:
        from fedmerge.silo.base import pick_device

        return Check("device", OK, f"silos train on {pick_device(config.silo.train.device)}")
    except _TROUBLE as error:
        return Check("device", BROKEN, str(error), "train.device = 'auto' takes what there is")


def _table(checks: Iterable[Check]) -> Table:
    from rich.table import Table
    from rich.text import Text

    table = Table(box=None, show_header=False, pad_edge=False, padding=(0, 2, 0, 0))
    table.add_column(no_wrap=True)
    table.add_column(no_wrap=True)
    table.add_column(overflow="fold")
    for check in checks:
        style = _STYLES[check.state]
        told = Text(check.found)
        if check.advice:
            told.append(f"\n-> {check.advice}", style=style)
        table.add_row(Text(check.state, style=style), Text(check.name), told)
    return table
