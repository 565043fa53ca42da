"""The table at the end of a run, built from what stands in its `result.json`."""

from __future__ import annotations

import math
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from typing import TYPE_CHECKING, Any

from fedmerge.cli.manner import count

if TYPE_CHECKING:
    from rich.console import RenderableType
    from rich.table import Table

METRIC_NAMES = {"bits_per_byte": "bits per byte"}

_ALONE, _MERGED, _SHADOW = "alone/", "merged/", "shadow/"
_ORDER = ("base", "centroids", "alone", "shadow", "merged", "pooled")
_NOTES = {
    "centroids": "centroids: nothing is trained; the base under class means of all silos' training rows",
    "alone": "alone: one silo trains by itself from the same start, as much as in all rounds together, "
    "and is scored on every silo",
    "shadow": "shadow: another rule over the same replies of the last round; no silo trained from its result",
    "pooled": "pooled training: all rows in one place, as much training as all silos together; "
    "a federation never has that",
}
_MANY_SILOS = 12  # above it, one row for the best silo alone stands for all of them
_WIDEST_NAME = 16
_MOST_BLOCKS = 4
_GAP = 2  # between columns: a space of padding and one that the box draws
_BEST = "*"


@dataclass(frozen=True)
class Row:
    """One candidate: its kind ("base", "centroids", "alone", "shadow", "merged", "pooled"), name, scores."""

    kind: str
    label: str
    scores: tuple[float | None, ...]


@dataclass(frozen=True)
class ScoreTable:
    """Scores of all candidates on all silos.

    Args:
        title: the metric, what it was measured on, and which direction is better, in words.
        columns: "mean", "worst silo", then the silos by name.
        rows: the candidates.
        best: for each column the value that is emphasised, as it is printed; "" for none.
        notes: what a reader must know to read the figures rightly.
    """

    title: str
    columns: tuple[str, ...]
    rows: tuple[Row, ...]
    best: tuple[str, ...]
    notes: tuple[str, ...]


def score_table(result: Mapping[str, Any]) -> ScoreTable:
    """The table of one run.

    Pooled training needs all rows in one place, which a federation never has: it is shown as the mark to
    reach and takes no part in the emphasis. Values that print alike are emphasised alike, and none is where
    all are alike.

    Args:
        result: the content of `result.json`.

    Example:
        >>> score = {"test": {"a": 0.5, "b": 0.7}, "mean": 0.6, "worst": 0.5}
        >>> table = score_table({"metric": "accuracy", "higher_is_better": True, "silos": ["a", "b"],
        ...                      "candidates": {"merged": score}, "kept": "merged"})
        >>> table.columns
        ('mean', 'worst silo', 'a', 'b')
        >>> table.rows
        (Row(kind='merged', label='merged (kept)', scores=(0.6, 0.5, 0.5, 0.7)),)
    """
    silos = tuple(result["silos"])
    higher = bool(result["higher_is_better"])
    split = _split(result["candidates"])
    rows = _folded(
        [_row(name, scores, result, split) for name, scores in result["candidates"].items()], higher
    )
    columns = ("mean", "worst silo", *silos)
    best = tuple(
        _best([row for row in rows if row.kind != "pooled"], place, higher) for place in range(len(columns))
    )
    return ScoreTable(
        title=_title(result, split),
        columns=columns,
        rows=tuple(rows),
        best=best,
        notes=_notes(result, rows, best),
    )


def blocks(table: ScoreTable, width: int) -> list[Table]:
    """The table as one or several rich tables of at most `width` characters: side by side where they fit.

    Args:
        table: what to show.
        width: of the terminal, in characters.
    """
    label_width = min(max(len(row.label) for row in table.rows), max(16, width // 3))
    widths = [_column_width(table, place) for place in range(len(table.columns))]
    parts: list[list[int]] = [[]]
    for place, column_width in enumerate(widths):
        taken = label_width + _GAP + sum(widths[other] + _GAP for other in parts[-1])
        if parts[-1] and taken + column_width > width:
            parts.append([])
        parts[-1].append(place)
    return [_block(table, {place: widths[place] for place in part}, label_width) for part in parts]


def shown(table: ScoreTable, width: int) -> list[RenderableType]:
    """Title, blocks and notes; of very many silos only mean and worst, and a line about it."""
    from rich.text import Text

    parts: list[RenderableType] = list(blocks(table, width))
    notes = list(table.notes)
    if len(parts) > _MOST_BLOCKS:
        parts = parts[:1]
        notes.append(
            "the scores of each silo stand in result.json, and are shown where the terminal is wide enough"
        )
    # As `Text` they wrap between words.
    return [Text(table.title), "", *parts, "", *map(Text, notes)]


def number(value: float | None) -> str:
    """A score as it is printed; a dash where there is none.

    Example:
        >>> number(0.73), number(None)
        ('0.730', '-')
    """
    return "-" if value is None or math.isnan(value) else f"{value:.3f}"


def metric_words(result: Mapping[str, Any]) -> str:
    """The metric and its direction in words.

    Example:
        >>> metric_words({"metric": "bits_per_byte", "higher_is_better": False})
        'bits per byte, lower is better'
    """
    metric = METRIC_NAMES.get(result["metric"], result["metric"])
    return f"{metric}, {'higher' if result['higher_is_better'] else 'lower'} is better"


def _split(candidates: Mapping[str, Mapping[str, Any]]) -> str:
    return "test" if any(scores.get("test") for scores in candidates.values()) else "validation"


def _title(result: Mapping[str, Any], split: str) -> str:
    rows = "test rows" if split == "test" else "validation rows (there are no test rows)"
    return f"{metric_words(result)}; measured on each silo's {rows}"


def _row(name: str, scores: Mapping[str, Any], result: Mapping[str, Any], split: str) -> Row:
    kind, label = _named(name)
    if name == result.get("kept"):
        label += " (kept)"
    by_silo = scores.get(split) or {}
    values = (scores.get("mean"), scores.get("worst"), *(by_silo.get(silo) for silo in result["silos"]))
    return Row(kind, label, values)


def _named(name: str) -> tuple[str, str]:
    """The kind and the label of a candidate.

    Example:
        >>> _named("alone/asyncio"), _named("shadow/ties() @ factors()")
        (('alone', 'asyncio alone'), ('shadow', 'shadow ties() @ factors()'))
    """
    if name in ("base", "centroids"):
        return name, name
    if name in ("merged", "adapter"):  # the latter of `fedmerge evaluate`
        return "merged", name
    if name.startswith(_MERGED):
        return "merged", f"merged, round {name.removeprefix(_MERGED)}"
    if name == "pooled":
        return name, "pooled training"
    if name.startswith(_ALONE):
        return "alone", f"{name.removeprefix(_ALONE)} alone"
    return "shadow", f"shadow {name.removeprefix(_SHADOW)}"


def _folded(rows: list[Row], higher: bool) -> list[Row]:
    """Rows in reading order; many silos' own trainings become one row, the best on the mean."""
    rows = sorted(rows, key=lambda row: _ORDER.index(row.kind))
    alone = [row for row in rows if row.kind == "alone"]
    if len(alone) <= _MANY_SILOS:
        return rows
    known = [row for row in alone if row.scores[0] is not None] or alone
    champion = sorted(known, key=lambda row: (row.scores[0] or 0.0) * (-1 if higher else 1))[0]
    folded = Row("alone", f"{champion.label} (best of {len(alone)})", champion.scores)
    return [row if row is not champion else folded for row in rows if row.kind != "alone" or row is champion]


def _best(rows: Sequence[Row], place: int, higher: bool) -> str:
    values = [value for row in rows if (value := row.scores[place]) is not None and not math.isnan(value)]
    printed = {number(value) for value in values}
    if len(printed) < 2:
        return ""
    return number(max(values) if higher else min(values))


def _notes(result: Mapping[str, Any], rows: Sequence[Row], best: Sequence[str]) -> tuple[str, ...]:
    kinds = {row.kind for row in rows}
    notes = [_NOTES[kind] for kind in _ORDER if kind in kinds and kind in _NOTES]
    if any(best):
        notes.insert(
            0, f"{_BEST} best of its column" + (", pooled training aside" if "pooled" in kinds else "")
        )
    notes += [f"rejected by the gate: {sentence}" for sentence in result.get("rejected", ())]
    if "rounds" not in result:
        return tuple(notes)
    spread = "the spread over seeds is unknown, so small differences may be chance"
    return (
        *notes,
        f"merged by {result['rule']} in {result['space']}, in {count(len(result['rounds']), 'round')}",
        f"one run with seed {result['seed']}: {spread}",
    )


def _column_width(table: ScoreTable, place: int) -> int:
    values = [len(_cell(table, row, place)) for row in table.rows]
    return max(min(len(table.columns[place]), _WIDEST_NAME), *values)


def _cell(table: ScoreTable, row: Row, place: int) -> str:
    printed = number(row.scores[place])
    is_best = bool(table.best[place]) and printed == table.best[place] and row.kind != "pooled"
    return printed + (_BEST if is_best else " ")


def _block(table: ScoreTable, widths: Mapping[int, int], label_width: int) -> Table:
    from rich import box
    from rich.table import Table
    from rich.text import Text

    block = Table(box=box.SIMPLE_HEAD, padding=(0, _GAP - 1, 0, 0), show_edge=False, pad_edge=False)
    block.add_column("", width=label_width, overflow="fold")
    for place, width in widths.items():
        name = Text(table.columns[place])
        block.add_column(name, justify="right", no_wrap=True, overflow="ellipsis", width=width)
    for row in table.rows:
        cells = [_cell(table, row, place) for place in widths]
        styled = [Text(cell, style="bold" if cell.endswith(_BEST) else "") for cell in cells]
        style = {"merged": "bold", "pooled": "dim"}.get(row.kind, "")
        block.add_row(Text(row.label, style=style), *styled)
    return block
