"""What a person sees when a finished run was merged again: every silo's score before and after."""

from __future__ import annotations

from collections.abc import Mapping
from pathlib import Path
from typing import TYPE_CHECKING, Any

from fedmerge.cli.merging import table
from fedmerge.cli.table import metric_words, number

if TYPE_CHECKING:
    from rich.console import RenderableType


def shown(result: Mapping[str, Any], folder: Path) -> list[RenderableType]:
    """The table, what must be known to read it, and where the adapter is.

    Args:
        result: the content of result.json.
        folder: of the run that was written.
    """
    changed = result["changed"]
    done = {"add": "added", "remove": "left out", "negate": "subtracted"}[changed["kind"]]
    return [
        "",
        f"{changed['silo']} {done}: {metric_words(result)}, on each silo's {changed['split']} rows",
        "",
        table(rows(changed, higher=bool(result["higher_is_better"]))),
        "",
        f"merged by {result['rule']} in {result['space']}",
        *(f"note     {note}" for note in changed["notes"]),
        f"run      {folder}",
        f"adapter  {result['adapter']}",
    ]


def rows(changed: Mapping[str, Any], *, higher: bool) -> list[list[str]]:
    """Each silo, the mean and the worst silo: before, after, and the difference.

    Args:
        changed: of result.json.
        higher: whether more of the figure is better.

    Example:
        >>> row = {"test": {"a": 0.5}, "mean": 0.5, "worst": 0.5}
        >>> changed = {"before": row, "after": row | {"test": {"a": 0.75}}, "split": "test", "silo": "a"}
        >>> rows(changed, higher=True)[1]
        ['a', '0.500', '0.750', '+0.250', 'better']
    """
    before, after, split = changed["before"], changed["after"], changed["split"]
    silos = sorted(before[split].keys() | after[split].keys())
    pairs = {silo: (before[split].get(silo), after[split].get(silo)) for silo in silos}
    pairs |= {
        name: (before.get(key), after.get(key)) for name, key in (("mean", "mean"), ("worst silo", "worst"))
    }
    return [
        ["", "before", "after", "difference", ""],
        *(_row(name, *pair, higher) for name, pair in pairs.items()),
    ]


def _row(name: str, before: float | None, after: float | None, higher: bool) -> list[str]:
    if before is None or after is None:
        return [name, number(before), number(after), "-", ""]
    change = f"{after - before:+.3f}"
    word = "" if float(change) == 0 else ("better" if (after > before) is higher else "worse")
    return [name, number(before), number(after), change, word]
