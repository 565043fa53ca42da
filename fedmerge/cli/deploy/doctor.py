"""`fedmerge deploy doctor`: which doors of a federation are open, and how to close them."""

from __future__ import annotations

from collections import Counter
from collections.abc import Iterable, Iterator
from pathlib import Path
from typing import TYPE_CHECKING, Annotated

import typer

from fedmerge.cli.manner import Outcome
from fedmerge.errors import ConfigError

if TYPE_CHECKING:
    from rich.table import Table

    from fedmerge.deployment.doctor.finding import Finding

_STYLES = {"closed": "green", "note": "cyan", "unknown": "yellow", "open": "bold red"}

Folder = Annotated[
    Path | None,
    typer.Argument(metavar="[FOLDER]", help="A party's folder: OUT/server, or OUT/silos/<silo>."),
]
Address = Annotated[
    str, typer.Option("--address", metavar="HOST:PORT", help="Instead: the address that sites reach.")
]
Authority = Annotated[
    Path | None, typer.Option("--ca", metavar="FILE", help="With --address: the CA that vouches for it.")
]
Database = Annotated[
    Path | None, typer.Option("--database", metavar="FILE", help="With --address: Flower's database.")
]


def doctor(
    folder: Folder = None, address: Address = "", ca: Authority = None, database: Database = None
) -> Outcome:
    """Ask every door of a federation who may pass, from one party's place; nothing is changed or taken."""
    from fedmerge.deployment.doctor.finding import any_open

    findings = list(_examined(folder, address, ca, database))
    counts = Counter(finding.state for finding in findings)
    verdict = ", ".join(f"{counts[state]} {state}" for state in ("open", "unknown", "note", "closed"))
    payload = {"ok": not any_open(findings), "findings": [vars(finding) for finding in findings]}
    return Outcome(payload, [_table(findings), "", verdict], status=1 if any_open(findings) else 0)


def _examined(folder: Path | None, address: str, ca: Path | None, database: Path | None) -> Iterator[Finding]:
    from fedmerge.deployment.doctor import examination, parties
    from fedmerge.deployment.doctor.asking import place_of

    if (folder is None) == (not address):
        raise ConfigError("expected either a party's folder or --address HOST:PORT")
    if folder is not None:
        yield from parties.examine(folder)
        return
    place = place_of(address, ca)
    yield from examination.of_address(place)
    yield from examination.of_superlink(place.port)
    if database is not None:
        yield from examination.of_database(database)


def _table(findings: Iterable[Finding]) -> Table:
    from rich.table import Table
    from rich.text import Text

    table = Table(box=None, show_header=False, pad_edge=False, padding=(0, 2, 0, 0))
    table.add_column(no_wrap=True)
    table.add_column(max_width=34)
    table.add_column(overflow="fold")
    for finding in findings:
        style = _STYLES[finding.state]
        told = Text(f"{finding.asked}: {finding.answered}")
        if finding.close:
            told.append(f"\n-> {finding.close}", style=style)
        table.add_row(Text(finding.state, style=style), Text(finding.door), told)
    return table
