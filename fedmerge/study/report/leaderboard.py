"""A sweep: every candidate merge of recorded deltas, ranked."""

from __future__ import annotations

from fedmerge.study.report.document import Block, Column, Fold, Table, Text, best_cells, count
from fedmerge.study.report.plots.canvas import Words
from fedmerge.study.report.plots.dots import Axis, Dot, dot_plot
from fedmerge.study.report.study_sources import Sweep, Swept

_MOST_DRAWN = 15


def leaderboard(sweep: Sweep, metric: str, higher: bool) -> tuple[Block, ...]:
    """The blocks of a run's sweep.

    Args:
        sweep: of the run.
        metric: the run's, where the sweep names none.
        higher: whether more of it is better.
    """
    scored = [candidate for candidate in sweep.candidates if candidate.mean is not None]
    failed = [candidate for candidate in sweep.candidates if candidate.mean is None]
    scored.sort(key=lambda candidate: (candidate.mean or 0.0) * (-1 if higher else 1))
    blocks: list[Block] = [Text(_sentence(sweep, scored, failed))]
    if scored:
        said = (scored[0].metric or metric).replace("_", " ")
        blocks += [_picture(scored, said, higher), _table(scored, said, higher)]
    rows = tuple((name, value) for name, value in sweep.test.items() if value is not None)
    if rows:
        columns = (Column("adapter"), Column("mean", 4))
        best = frozenset(best_cells(rows, 1, 4, higher))
        blocks.append(Table("The chosen candidate on test rows, beside the others", columns, rows, best=best))
    if failed:
        errors = tuple((candidate.name, candidate.error or "no score") for candidate in failed)
        blocks.append(
            Fold(
                f"{count(len(failed), 'candidate')} without a score",
                (Table("Why", (Column("candidate"), Column("error")), errors),),
            )
        )
    return tuple(blocks)


def _sentence(sweep: Sweep, scored: list[Swept], failed: list[Swept]) -> str:
    text = f"{count(len(sweep.candidates), 'candidate')} from the same recorded deltas, without any training"
    text += f"; {len(failed)} could not be scored" if failed else ""
    best = sweep.best or (scored[0].name if scored else "")
    chosen = f" The best one by {scored[0].split} scores is {best}." if scored and best else ""
    return (
        f"{text}.{chosen} Chosen among many on the same rows, a best score flatters: the test rows decide."
        if scored
        else f"{text}."
    )


def _picture(scored: list[Swept], metric: str, higher: bool) -> Block:
    drawn = scored[:_MOST_DRAWN]
    dots = [
        Dot(entry.name, entry.mean or 0.0, None, entry.worst, "merged" if place == 0 else "other")
        for place, entry in enumerate(drawn)
    ]
    listing = ", ".join(f"{entry.name} {entry.mean:.4f}" for entry in drawn)
    best = f"The best {len(drawn)} of {count(len(scored), 'candidate')}"
    words = Words(
        f"{best} by mean {metric}: {listing}.",
        f"{best}: mean {metric} on {drawn[0].split} rows; lines reach to the worst silo.",
    )
    return dot_plot(dots, Axis(f"{metric} {'(better →)' if higher else '(← better)'}"), words)


def _table(scored: list[Swept], metric: str, higher: bool) -> Table:
    columns = (
        Column("candidate"),
        Column("rank", 0),
        Column("mean", 4),
        Column("worst silo", 4),
        Column("seconds", 1),
    )
    rows = tuple(
        (entry.name, float(place), entry.mean, entry.worst, entry.seconds)
        for place, entry in enumerate(scored, start=1)
    )
    best = frozenset(best_cells(rows, 2, 4, higher) | best_cells(rows, 3, 4, higher))
    return Table(f"Leaderboard: {metric} on {scored[0].split} rows", columns, rows, best=best)
