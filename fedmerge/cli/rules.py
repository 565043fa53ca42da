"""`fedmerge rules`: the catalogue of merge rules."""

from __future__ import annotations

import inspect
import re
from collections.abc import Callable
from typing import TYPE_CHECKING, Annotated, Any

import typer

from fedmerge.cli.manner import Outcome
from fedmerge.errors import RuleError, nearest

if TYPE_CHECKING:
    from rich.table import Table


def rules(
    name: Annotated[str, typer.Argument(help="A rule, to read all about it.", show_default=False)] = "",
) -> Outcome:
    """List the merge rules, or explain one: formula, knobs, example, paper."""
    from fedmerge.rules import RULES

    if not name:
        entries = [describe(known, make) for known, make in sorted(RULES.items())]
        return Outcome({"rules": entries}, [_table(entries), "", "fedmerge rules NAME explains one."])
    bare = name.partition("(")[0].strip()
    if bare not in RULES:
        raise RuleError(f"rule {bare!r} is unknown; {nearest(bare, RULES)}")
    entry = describe(bare, RULES[bare])
    text = inspect.getdoc(RULES[bare]) or ""
    return Outcome({**entry, "docstring": text}, [entry["signature"], "", text])


def describe(name: str, make: Callable[..., Any]) -> dict[str, str]:
    """Name, signature, first line and reference of a rule, from its function and docstring.

    Example:
        >>> def uniform(scale: float = 1.0) -> None:
        ...     '''The plain mean.
        ...
        ...     Reference:
        ...         Nobody. A title. 2020.
        ...     '''
        >>> describe("uniform", uniform)["signature"], describe("uniform", uniform)["reference"]
        ('uniform(scale=1.0)', 'Nobody. A title. 2020.')
    """
    text = inspect.getdoc(make) or ""
    summary = text.partition("\n\n")[0].replace("\n", " ")
    return {
        "name": name,
        "signature": _signature(name, make),
        "summary": summary,
        "reference": _section(text, "Reference"),
    }


def _signature(name: str, make: Callable[..., Any]) -> str:
    knobs = inspect.signature(make).parameters.values()
    shown = [
        knob.name if knob.default is inspect.Parameter.empty else f"{knob.name}={knob.default!r}"
        for knob in knobs
        if knob.kind is not inspect.Parameter.VAR_POSITIONAL
    ]
    stages = [f"{knob.name}, ..." for knob in knobs if knob.kind is inspect.Parameter.VAR_POSITIONAL]
    return f"{name}({', '.join(stages + shown)})"


def _section(text: str, title: str) -> str:
    """The text of one section of a Google docstring, on one line."""
    _, found, rest = text.partition(f"{title}:\n")
    if not found:
        _, found, rest = text.partition(f"{title}s:\n")
    lines = []
    for line in rest.splitlines():
        if line.strip() and not line.startswith(" "):
            break
        lines.append(line.strip())
    return " ".join(filter(None, lines))


def _table(entries: list[dict[str, str]]) -> Table:
    from rich import box
    from rich.table import Table
    from rich.text import Text

    table = Table(box=box.SIMPLE_HEAD, show_edge=False, pad_edge=False)
    table.add_column("rule", style="bold", no_wrap=True)
    for heading in ("knobs", "what it does", "reference"):
        table.add_column(heading, overflow="fold")
    for entry in entries:
        knobs = entry["signature"].removeprefix(entry["name"])[1:-1]
        papers = "\n".join(re.findall(r"arXiv[: ]\d+\.\d+", entry["reference"]))
        table.add_row(*(Text(part) for part in (entry["name"], knobs, entry["summary"], papers)))
    return table
