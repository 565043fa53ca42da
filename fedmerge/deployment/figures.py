"""A run in numbers, from the events that it writes down: they outlive the process that wrote them."""

from __future__ import annotations

import json
import math
from collections import Counter
from collections.abc import Callable, Mapping
from dataclasses import dataclass, field, replace
from pathlib import Path
from typing import Any

from fedmerge.engine.tail import Lines
from fedmerge.server.refusals import kind_of
from fedmerge.server_app.scoring import MERGED

PHASES = ("wait", "train", "merge", "write")


@dataclass(frozen=True)
class RoundFigures:
    """One round's report in numbers.

    Args:
        asked: silos.
        admitted: replies.
        missing: silos that did not answer.
        refused: replies by kind of refusal.
        bytes_up: of replies.
        bytes_down: of instructions.
        seconds: by phase.
        failed: whether it could not be closed.
    """

    asked: int
    admitted: int
    missing: int
    refused: Mapping[str, int]
    bytes_up: int
    bytes_down: int
    seconds: Mapping[str, float]
    failed: bool


@dataclass(frozen=True)
class Figures:
    """A run in numbers.

    Args:
        planned: rounds; 0 before it is known.
        round: the last one that was begun.
        asked: silos that it asks.
        rounds: what is known of each by (number, whether it failed): a round that is run again after a
            crash counts once.
        score: the newest mean over silos of what the rounds made; NaN before there is one.
        metric: what the score measures.
        started: unix time at which the run began, or began again; 0 before.
        closed_at: unix time at which the last round was closed; 0 before.
        finished: whether it came to its end.
    """

    planned: int = 0
    round: int = 0
    asked: int = 0
    rounds: Mapping[tuple[int, bool], RoundFigures] = field(default_factory=dict)
    score: float = math.nan
    metric: str = ""
    started: float = 0.0
    closed_at: float = 0.0
    finished: bool = False

    @property
    def closed(self) -> int:
        """Rounds that were closed."""
        return sum(not each.failed for each in self.rounds.values())

    @property
    def last(self) -> RoundFigures | None:
        """The round whose report is the newest."""
        return next(reversed(list(self.rounds.values())), None)

    def total(self, of: Callable[[RoundFigures], Mapping[str, float]]) -> dict[str, float]:
        """The sums of all rounds, by key."""
        sums: dict[str, float] = {}
        for each in self.rounds.values():
            for key, value in of(each).items():
                sums[key] = sums.get(key, 0.0) + value
        return sums


def told(figures: Figures, event: Mapping[str, Any]) -> Figures:
    """The figures after one more event of events.jsonl."""
    when = float(event["time"])
    if event["event"] == "run_started":
        return replace(figures, planned=int(event["plan"]["rounds"]), started=when, finished=False)
    if event["event"] == "resumed":
        return replace(figures, started=when, finished=False)
    if event["event"] == "round_started":
        return replace(figures, round=int(event["round"]), asked=len(event["silos"]))
    if event["event"] == "round_closed":
        return _closed(figures, event["report"], when)
    if event["event"] == "finished":
        return _scored(replace(figures, finished=True), event["result"])
    return figures


def _closed(figures: Figures, report: Mapping[str, Any], when: float) -> Figures:
    number, one = int(report["round"]), _round(report)
    rounds = {key: value for key, value in figures.rounds.items() if key != (number, one.failed)}
    figures = replace(figures, rounds=rounds | {(number, one.failed): one})
    if one.failed:
        return figures
    received = report.get("received") or {}
    if received.get("mean") is not None:  # the silos score the broadcast: what the round before made
        figures = replace(figures, score=float(received["mean"]), metric=str(received["metric"]))
    return replace(figures, closed_at=when)


def _round(report: Mapping[str, Any]) -> RoundFigures:
    return RoundFigures(
        asked=len(report["asked"]),
        admitted=len(report["admitted"]),
        missing=len(report["missing"]),
        refused=_by_kind(report.get("refusals", {})),
        bytes_up=int(report["bytes_up"]),
        bytes_down=int(report["bytes_down"]),
        seconds={phase: float(report["seconds"].get(phase, 0.0)) for phase in PHASES},
        failed=bool(report["failed"]),
    )


def _by_kind(refusals: Mapping[str, int]) -> dict[str, int]:
    """Counts by code as counts by kind."""
    kinds: Counter[str] = Counter()
    for code, count in refusals.items():
        kinds[kind_of(code)] += int(count)
    return dict(kinds)


def _scored(figures: Figures, result: Mapping[str, Any]) -> Figures:
    mean = result["candidates"].get(MERGED, {}).get("mean")
    return figures if mean is None else replace(figures, score=float(mean), metric=str(result["metric"]))


class Following:
    """The figures of a run's folder, as of the last `read`.

    Args:
        folder: of the run; it need not exist yet.
    """

    def __init__(self, folder: Path) -> None:
        """Begin with what the run wrote so far."""
        self._lines = Lines(folder / "events.jsonl")
        self._replaced = 0
        self.figures = Figures()

    def read(self) -> Figures:
        """Take in what the run has written since; begin anew where it did."""
        lines = self._lines.read()
        if self._lines.replaced != self._replaced:
            self._replaced, self.figures = self._lines.replaced, Figures()
        for line in lines:
            self.figures = _told_line(self.figures, line)
        return self.figures


def _told_line(figures: Figures, line: bytes) -> Figures:
    """A line that a crash cut in two, or that another version wrote, tells nothing."""
    try:
        return told(figures, json.loads(line))
    except (ValueError, KeyError, TypeError, AttributeError):
        return figures
