"""The scores of each round's adapter, with spread; and what other merges would have made."""

from __future__ import annotations

from collections.abc import Sequence

from fedmerge.study.report.document import Block, Column, Table, Text, count
from fedmerge.study.report.groups import Group
from fedmerge.study.report.plots.canvas import Words
from fedmerge.study.report.plots.rounds import Counterfactual, Series, round_plot
from fedmerge.study.report.run_source import Run
from fedmerge.study.report.seeds import mean
from fedmerge.study.report.verdict import number

Scored = dict[int, tuple[float, dict[str, float | None]]]
_MOST_OTHERS = 8


def by_round(groups: Sequence[Group]) -> tuple[Block, ...]:
    """Lines of all experiments; () where no round was scored."""
    series = [line for group in groups if (line := _series(group, len(groups) > 1)) is not None]
    if not series:
        return ()
    others = _counterfactuals(groups[0]) if len(groups) == 1 else []
    single = all(len(group.runs) == 1 for group in groups)
    band = (
        "from the worst to the best silo"
        if single
        else "from the lowest to the highest seed (one seed: silo)"
    )
    first = groups[0]
    said = "; ".join(
        f"{line.name} from {number(line.middle[0])} after {count(line.rounds[0], 'round')} "
        f"to {number(line.middle[-1])} after {line.rounds[-1]}"
        for line in series[:6]
    )
    metric = _metric(first)
    caption = f"Mean {metric} on validation rows; the band reaches {band}."
    if others:
        caption += " Open marks: what another merge of the same replies would have scored."
    picture = round_plot(series, others, metric, Words(f"{metric} by round: {said}.", caption))
    return (picture, *(_table(line) for line in series), *_note(others))


def _metric(group: Group) -> str:
    return group.metric if group.results else "score"


def scored(run: Run) -> Scored:
    """Mean and silos' scores on validation rows, by how many rounds were merged."""
    found: Scored = {
        round.number - 1: (round.received.mean, round.received.silos)
        for round in run.rounds
        if round.received is not None and round.received.mean is not None
    }
    last = run.result.candidates.get("merged") if run.result else None
    if last is not None and run.rounds and (final := mean(list(last.validation.values()))) is not None:
        found[run.rounds[-1].number] = (final, last.validation)
    return found


def _series(group: Group, several: bool) -> Series | None:
    runs = [found for run in group.runs if (found := scored(run))]
    rounds = sorted({place for found in runs for place in found})
    if not rounds:
        return None
    middle, low, high = [], [], []
    for place in rounds:
        here = [found[place] for found in runs if place in found]
        means = [value for value, _ in here]
        ends = (
            means if len(runs) > 1 else [value for value in here[0][1].values() if value is not None] or means
        )
        middle.append(sum(means) / len(means))
        low.append(min(ends))
        high.append(max(ends))
    name = group.label if several else "merged"
    return Series(name, tuple(rounds), tuple(middle), tuple(low), tuple(high))


def _counterfactuals(group: Group) -> list[Counterfactual]:
    points: dict[str, dict[int, list[float]]] = {}
    for run in group.runs:
        for round in run.rounds:
            for name, value in round.shadows.items():
                if value is not None:
                    points.setdefault(name, {}).setdefault(round.number, []).append(value)
    return [
        Counterfactual(name, tuple((place, sum(each) / len(each)) for place, each in sorted(found.items())))
        for name, found in list(points.items())[:_MOST_OTHERS]
    ]


def _table(line: Series) -> Table:
    columns = (Column("rounds merged", 0), Column("mean", 4), Column("lowest", 4), Column("highest", 4))
    rows = tuple(zip(map(float, line.rounds), line.middle, line.low, line.high, strict=True))
    return Table(f"Scores by round on validation rows: {line.name}", columns, rows)


def _note(others: Sequence[Counterfactual]) -> tuple[Block, ...]:
    if not others:
        return ()
    rounds = sorted({place for other in others for place, _ in other.points})
    columns = (Column("merge of the same replies"), *(Column(f"round {place}", 4) for place in rounds))
    rows = tuple((other.name, *(dict(other.points).get(place) for place in rounds)) for other in others)
    note = Text("One step each: the next round went on from the run's own merge.", "note")
    return (Table("One-step counterfactuals", columns, rows), note)
