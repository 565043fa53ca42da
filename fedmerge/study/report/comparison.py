"""Strategies side by side: paired differences to the reference with their intervals."""

from __future__ import annotations

from fedmerge.study.report.document import Block, Code, Column, Fold, Table, Text, best_cells, count
from fedmerge.study.report.plots.canvas import Words
from fedmerge.study.report.plots.dots import Axis, Dot, dot_plot
from fedmerge.study.report.study_sources import Compared, Comparison

_MEGABYTE = 1e6
_MOST_DRAWN = 40
_KINDS = {"better": "gain", "worse": "loss", "tie": "other"}


def comparison(study: Comparison) -> tuple[Block, ...]:
    """The blocks of one comparison."""
    blocks: list[Block] = []
    if any(row.difference for row in study.rows):
        blocks.append(_picture(study))
    blocks += [_table(study), Fold("Scores by silo and by seed", (_by_silo(study), _by_seed(study)))]
    machine = f" on {study.machine}" if study.machine else ""
    took = f", {study.seconds:.0f} s" if study.seconds else ""
    seeds = ", ".join(f"{seed:g}" for seed in study.seeds if seed is not None)
    tuned = f" {study.tuned} was tuned." if study.tuned else ""
    notes = [f"Seeds {seeds}{machine}{took}.{tuned}", *study.notes]
    return (*blocks, *(Text(note, "note") for note in notes), Code(study.command))


def _metric(study: Comparison) -> str:
    return f"{study.metric.replace('_', ' ')}, {'higher' if study.higher else 'lower'} is better"


def _picture(study: Comparison) -> Block:
    sign = 1.0 if study.higher else -1.0
    rows = [row for row in study.rows if row.difference is not None]
    ranked = sorted(rows, key=lambda row: -sign * (row.difference.mean if row.difference else 0.0))[
        :_MOST_DRAWN
    ]
    dots = [
        Dot(row.name, found.mean, found.low, found.high, _KINDS[found.verdict], hollow=found.verdict == "tie")
        for row in ranked
        if (found := row.difference) is not None
    ]
    listing = "; ".join(f"{row.name} {_interval(row)}" for row in ranked)
    words = Words(
        f"Paired difference to {study.reference}, best first: {listing}.",
        f"Difference to {study.reference} ({_metric(study)}), paired by seed, with its interval; an open "
        "mark is a tie, whose interval contains no difference.",
    )
    arrow = "(better →)" if study.higher else "(← better)"
    return dot_plot(dots, Axis(f"difference to {study.reference} {arrow}", mark=0.0), words)


def _interval(row: Compared) -> str:
    found = row.difference
    if found is None:
        return ""
    ends = "" if found.low is None or found.high is None else f" [{found.low:+.4f}, {found.high:+.4f}]"
    return f"{found.mean:+.4f}{ends}, {found.verdict}"


def _table(study: Comparison) -> Table:
    columns = (
        Column("strategy"), Column("kind"), Column("mean", 4), Column("spread over seeds", 4),
        Column("worst silo", 4), Column("which"), Column("difference", 4, signed=True),
        Column("low", 4, signed=True), Column("high", 4, signed=True), Column("verdict"), Column("knob", 3),
        Column("MB up", 2), Column("MB down", 2), Column("seconds", 1),
    )  # fmt: skip
    rows = [_row(row, study.reference) for row in study.rows]
    best = best_cells(rows, 2, 4, study.higher) | best_cells(rows, 4, 4, study.higher)
    reference = frozenset(place for place, row in enumerate(study.rows) if row.name == study.reference)
    keep = [
        place for place, column in enumerate(columns) if any(row[place] not in (None, "") for row in rows)
    ]
    moved = {(row, keep.index(column)) for row, column in best}
    over = f"{count(len(study.silos), 'silo')} and {count(len(study.seeds), 'seed')}"
    caption = f"Mean over {over}, {study.split} rows: {_metric(study)}"
    return Table(
        caption,
        tuple(columns[place] for place in keep),
        tuple(tuple(row[place] for place in keep) for row in rows),
        strong=reference,
        best=frozenset(moved),
    )


def _row(row: Compared, reference: str) -> tuple[str | float | None, ...]:
    found = row.difference
    verdict = found.verdict if found else "reference" if row.name == reference else ""
    return (
        row.name, row.kind, row.mean, row.spread, row.worst, row.worst_silo,
        found.mean if found else None, found.low if found else None, found.high if found else None, verdict,
        row.knob, _megabytes(row.bytes_up), _megabytes(row.bytes_down), row.seconds,
    )  # fmt: skip


def _megabytes(size: float | None) -> float | None:
    return None if size is None else size / _MEGABYTE


def _by_silo(study: Comparison) -> Table:
    columns = (Column("strategy"), *(Column(silo, 4) for silo in study.silos))
    rows = tuple((row.name, *(row.silos.get(silo) for silo in study.silos)) for row in study.rows)
    best = {cell for place in range(1, len(columns)) for cell in best_cells(rows, place, 4, study.higher)}
    return Table("By silo, the mean over seeds", columns, rows, best=frozenset(best))


def _by_seed(study: Comparison) -> Table:
    columns = (Column("strategy"), *(Column(f"seed {seed:g}", 4) for seed in study.seeds if seed is not None))
    width = len(columns) - 1
    rows = tuple((row.name, *(*row.by_seed, *[None] * width)[:width]) for row in study.rows)
    return Table("By seed, the mean over silos", columns, rows)
