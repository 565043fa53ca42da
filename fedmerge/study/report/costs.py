"""What a run took: bytes, seconds, and the replies that did not count."""

from __future__ import annotations

from collections import Counter

from fedmerge.study.report.document import Block, Column, Fold, Table, Text, count
from fedmerge.study.report.plots.canvas import Words
from fedmerge.study.report.plots.phases import phase_plot
from fedmerge.study.report.run_source import Round, Run

_MEGABYTE = 1e6
_MOST_OPEN = 20
Loss = tuple[str, float, str, str]


def costs(run: Run) -> tuple[Block, ...]:
    """The blocks of one run."""
    blocks: list[Block] = [Text(_sentence(run))]
    seconds = {phase: value for phase, value in _seconds(run).items() if value is not None}
    if seconds:
        said = ", ".join(f"{phase} {value:.1f} s" for phase, value in seconds.items())
        blocks.append(phase_plot(seconds, Words(f"Seconds by phase: {said}.", "Wall clock by phase.")))
    if run.rounds:
        table = _rounds(run.rounds)
        blocks.append(table if len(run.rounds) <= _MOST_OPEN else Fold("All rounds", (table,)))
    return (*blocks, *_losses(run))


def _sentence(run: Run) -> str:
    up = run.result.bytes_up if run.result else sum(round.bytes_up for round in run.rounds)
    down = run.result.bytes_down if run.result else sum(round.bytes_down for round in run.rounds)
    where = "in all" if run.result else "in rounds"
    return (
        f"Sent {where}: {up / _MEGABYTE:.1f} MB up, from the silos, and {down / _MEGABYTE:.1f} MB down, "
        f"to them. {_counted(run)}"
    )


def _counted(run: Run) -> str:
    refused = sum(len(round.refused) for round in run.rounds)
    missing = sum(len(round.missing) for round in run.rounds)
    rejected = sum(len(round.rejected) for round in run.rounds)
    parts = []
    if refused or missing:
        are = "is" if refused == 1 else "are"
        parts.append(
            f"{count(refused, 'reply').replace('replys', 'replies')} {are} refused, {missing} missing"
        )
    else:
        parts.append("Every reply was admitted")
    text = parts[0] + (f"; {count(rejected, 'merge')} taken back" if rejected else "")
    return f"{text}."


def _seconds(run: Run) -> dict[str, float | None]:
    if run.result and run.result.seconds:
        return run.result.seconds
    total: Counter[str] = Counter()
    for round in run.rounds:
        total.update({phase: value for phase, value in round.seconds.items() if value is not None})
    return dict(total)


def _rounds(rounds: tuple[Round, ...]) -> Table:
    phases = list(dict.fromkeys(phase for round in rounds for phase in round.seconds))
    columns = (
        Column("round", 0), Column("asked", 0), Column("admitted", 0), Column("refused", 0),
        Column("missing", 0), Column("MB up", 2), Column("MB down", 2),
        *(Column(f"{phase}, s", 1) for phase in phases), Column("energy left out", 4),
    )  # fmt: skip
    rows = tuple(
        (
            float(each.number), float(len(each.asked)), float(each.admitted), float(len(each.refused)),
            float(len(each.missing)), each.bytes_up / _MEGABYTE, each.bytes_down / _MEGABYTE,
            *(each.seconds.get(phase) for phase in phases), each.discarded,
        )
        for each in rounds
    )  # fmt: skip
    return Table("By round", columns, rows)


def _losses(run: Run) -> list[Block]:
    """Refused, missing, flagged and taken back: by reason, then one by one."""
    lost = [loss for round in run.rounds for loss in _lost(round)]
    if not lost:
        return []
    reasons = Counter((what, reason) for _, _, what, reason in lost)
    rows = tuple((reason, what, float(number)) for (what, reason), number in reasons.most_common())
    columns = (Column("reason"), Column("what"), Column("times", 0))
    each = Table(
        "One by one",
        (Column("silo"), Column("round", 0), Column("what"), Column("reason")),
        tuple(lost),
    )
    return [Table("What did not count, or was odd, by reason", columns, rows), Fold("One by one", (each,))]


def _lost(round: Round) -> list[Loss]:
    number = float(round.number)
    return [
        *((silo, number, "refused", reason) for silo, reason in round.refused),
        *((silo, number, "missing", "no reply") for silo in round.missing),
        *((silo, number, "flagged", what) for silo, what in round.flagged),
        *(("all", number, "taken back", reason) for reason in round.rejected),
    ]
