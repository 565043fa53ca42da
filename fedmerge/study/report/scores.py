"""The scores of all candidates: a picture and a table."""

from __future__ import annotations

from fedmerge.study.report.document import Block, Column, Fold, Table, Text, best_cells
from fedmerge.study.report.groups import KEPT, Group
from fedmerge.study.report.plots.canvas import Words
from fedmerge.study.report.plots.dots import Axis, Dot, dot_plot
from fedmerge.study.report.seeds import mean
from fedmerge.study.report.verdict import ALONE, BASE, POOLED, label, number

_MOST_ALONE = 6
_MOST_SILOS = 12
_MOST_ROWS = 16
_KINDS = {
    "base": "base",
    "centroids": "base",
    "alone": "alone",
    "pooled": "pooled",
    "shadow": "other",
    "merged": "other",
}
_NOTES = {
    "centroids": "Class centroids: nothing is trained; the base under class means of all training rows.",
    "alone/": "Alone: one silo trains by itself from the same start, as much as in all rounds together, "
    "scored on every silo.",
    "shadow/": "A rule @ space: another merge of the last round's replies; no silo trained on from it.",
    "pooled": "Pooled training has all rows in one place, and as much training as all silos together; a "
    "federation never has that, so it is the mark to reach.",
}


def scores(group: Group) -> tuple[Block, ...]:
    """The candidates of one experiment; () where nothing was scored."""
    names = [name for name in group.candidates() if group.mean(name) is not None]
    if not names:
        return ()
    alone = [name for name in names if name.startswith(ALONE)]
    ranked = sorted(alone, key=lambda name: -(group.mean(name) or 0.0) * group.sign)
    few = [name for name in names if name not in alone or name in ranked[:_MOST_ALONE]]
    blocks: list[Block] = [_picture(group, few), _table(group, few, "Scores")]
    if len(few) < len(names):
        rest = _table(group, ranked, "Every silo's own training")
        blocks.append(Fold(f"All {len(alone)} silos' own trainings, scored on all silos", (rest,)))
    heads = {name.partition("/")[0] + ("/" if "/" in name else "") for name in names}
    notes = " ".join(note for head, note in _NOTES.items() if head in heads)
    return (*blocks, Text(notes, "note")) if notes else tuple(blocks)


def _picture(group: Group, names: list[str]) -> Block:
    ranked = sorted(names, key=lambda name: -(group.mean(name) or 0.0) * group.sign)[:_MOST_ROWS]
    dots = [_dot(group, name) for name in ranked]
    listing = ", ".join(f"{dot.name} {number(dot.value)}" for dot in dots)
    several = len(group.results) > 1
    reach = "one standard deviation over seeds to both sides" if several else "to the worst silo"
    words = Words(
        f"Mean {group.metric} of each candidate, best first: {listing}.",
        f"Mean {group.metric} over the silos' {group.split} rows ({group.direction}), best first; "
        f"lines reach {reach}.",
    )
    arrow = "(better →)" if group.higher else "(← better)"
    return dot_plot(dots, Axis(f"{group.metric} {arrow}"), words)


def _dot(group: Group, name: str) -> Dot:
    value, deviation = group.mean(name) or 0.0, group.spread(name)
    kind = "merged" if name == KEPT else _KINDS.get(name.partition("/")[0], "other")
    low, high = None, mean(group.worsts(name))
    if len(group.results) > 1:
        low, high = (None, None) if deviation is None else (value - deviation, value + deviation)
    return Dot(label(name), value, low, high, kind, name == BASE)


def _table(group: Group, names: list[str], caption: str) -> Table:
    silos = group.silos if len(group.silos) <= _MOST_SILOS else ()
    several = len(group.results) > 1
    columns = [Column("candidate"), Column("mean", 4)]
    columns += [Column("spread over seeds", 4)] if several else []
    columns += [Column("worst silo", 4), *(Column(silo, 4) for silo in silos)]
    rows = []
    for name in names:
        figures = [group.mean(name), *([group.spread(name)] if several else []), mean(group.worsts(name))]
        rows.append((label(name), *figures, *(group.at(name, silo) for silo in silos)))
    compared = [row for row, name in zip(rows, names, strict=True) if name != POOLED]
    best = {
        cell
        for place, column in enumerate(columns)
        if column.digits is not None and "spread" not in column.title
        for cell in best_cells(compared, place, 4, group.higher)
    }
    back = [place for place, name in enumerate(names) if name != POOLED]
    return Table(
        f"{caption}: {group.metric}, {group.direction}, on {group.split} rows",
        tuple(columns),
        tuple(rows),
        strong=frozenset(place for place, name in enumerate(names) if name == KEPT),
        best=frozenset((back[row], column) for row, column in best),
    )
