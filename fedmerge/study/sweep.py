"""A hundred merges for the price of scoring them: candidates are merged here while the silos score others.

What is chosen is chosen on validation rows alone. Test rows are seen once, at the end, by the winner and by
what it is compared with; they say what the winner is worth, and its validation score, the best of many, does
not.
"""

from __future__ import annotations

import time
from collections.abc import Mapping
from dataclasses import dataclass, field
from typing import Protocol

import torch

from fedmerge.adapters import Adapter
from fedmerge.errors import ConfigError, FedMergeError
from fedmerge.study.candidates import Candidate
from fedmerge.study.leaderboard import Leaderboard, Line, ranked
from fedmerge.study.material import Material
from fedmerge.study.scoring import Scored, Scorer
from fedmerge.study.search import Source
from fedmerge.study.winner import Winner

BATCH = 4
"""Candidates of one message to a silo. A search depends on it, so it is no matter of the machine."""

BASE, KEPT = "base", "kept"


class Watcher(Protocol):
    """Is told how a sweep goes on."""

    def begin(self, total: int) -> None:
        """So many candidates are to come, at most."""
        ...

    def line(self, line: Line, *, new: bool) -> None:
        """A candidate is done; it was known from an earlier call where it is not `new`."""
        ...


@dataclass(frozen=True)
class SweepSettings:
    """How a sweep goes.

    Args:
        reference: the candidate that all are compared with.
        limit_seconds: no further candidate is begun so long after `began`; 0 is without limit.
        began: `time.monotonic()` of the start.
    """

    reference: Candidate
    limit_seconds: float = 0.0
    began: float = field(default_factory=time.monotonic)

    @property
    def over(self) -> bool:
        """Whether the time is up."""
        return 0 < self.limit_seconds < time.monotonic() - self.began


@dataclass(frozen=True)
class Swept:
    """What a sweep ends with.

    Args:
        lines: of all candidates of this sweep, in the order in which they were asked for.
        computed: how many of them were not known before.
        stopped: what ended it before all candidates were seen, or "".
        validation: scores of what is no candidate, "base" and "kept".
        test: scores on test rows of "base", "kept", and the texts of reference and winner; empty where there
            are no test rows.
    """

    lines: Mapping[Candidate, Line]
    computed: int
    stopped: str
    validation: Mapping[str, Scored]
    test: Mapping[str, Scored]

    @property
    def best(self) -> Line:
        """The line with the best mean."""
        return ranked(self.lines.values())[0]


@dataclass(frozen=True)
class _Batch:
    """Candidates that were asked for together, and those of them that are to be scored."""

    asked: list[Candidate]
    adapters: dict[Candidate, Adapter] = field(default_factory=dict)
    seconds: dict[Candidate, float] = field(default_factory=dict)


@dataclass
class Sweep:
    """One sweep.

    Args:
        material: what is merged.
        scorer: reaches the silos.
        board: where lines are written.
        winner: where the best adapter is written.
        settings: reference and time limit.
        standing: adapters that are no candidates, to be compared with: "base", "kept".
        tested: scores of these on test rows, as far as they are known.
        watcher: is told of each line.
    """

    material: Material
    scorer: Scorer
    board: Leaderboard
    winner: Winner
    settings: SweepSettings
    standing: Mapping[str, Adapter]
    watcher: Watcher
    tested: Mapping[str, Scored] = field(default_factory=dict)
    _lines: dict[Candidate, Line] = field(default_factory=dict)
    _sent: set[Candidate] = field(default_factory=set)
    _computed: int = 0

    def run(self, source: Source) -> Swept:
        """Score what the source asks for, write it down, and keep the best.

        Raises:
            ConfigError: no silo has validation rows, or no candidate could be scored.
            CheckpointError: the folder can't be written.
        """
        validation = self.scorer.now(self.standing, "validation")
        if validation[BASE].summary is None:
            raise ConfigError(
                "a sweep scores on validation rows, and there is no score of the base on any: "
                f"{validation[BASE].error or 'no silo has such rows (data.validation)'}"
            )
        first = self._merged([self.settings.reference])
        self._send(first)
        self._finish(first)
        stopped = self._all(source)
        best = self._best()
        if not self.winner.holds(best):
            self.winner.keep(best, self.material.merged(best.candidate))
        return Swept(self._lines, self._computed, stopped, validation, self._on_test_rows(best))

    def _all(self, source: Source) -> str:
        """Merge one batch while the one before is scored; returns what ended it early, or ""."""
        before: _Batch | None = None
        asked = source.ask(BATCH)
        while asked and not self.settings.over:
            batch = self._merged(asked)
            if before is not None:
                self._told(before, source)
            self._send(batch)
            before, asked = batch, source.ask(BATCH)
        if before is not None:
            self._told(before, source)
        return f"the time limit of {self.settings.limit_seconds:g} seconds" if asked else ""

    def _told(self, batch: _Batch, source: Source) -> None:
        self._finish(batch)
        for candidate in batch.asked:
            source.tell(candidate, self._lines[candidate].mean)

    def _merged(self, asked: list[Candidate]) -> _Batch:
        """Merge those candidates that have no line yet, and are not being scored."""
        batch = _Batch(asked)
        for candidate in dict.fromkeys(asked):
            if candidate in self._lines or candidate in self._sent:
                continue
            if (known := self.board.known(candidate)) is not None:
                self._lines[candidate] = known
                self.watcher.line(known, new=False)
                continue
            began = time.monotonic()
            try:
                batch.adapters[candidate] = self.material.merged(candidate)
            except (FedMergeError, RuntimeError, MemoryError) as error:  # torch's: no memory, no convergence
                self._note(Line.failed(candidate, self.board.key, error))
            batch.seconds[candidate] = time.monotonic() - began
            self.scorer.poll()
        return batch

    def _send(self, batch: _Batch) -> None:
        if batch.adapters:
            self._sent.update(batch.adapters)
            self.scorer.begin({str(candidate): adapter for candidate, adapter in batch.adapters.items()})

    def _finish(self, batch: _Batch) -> None:
        """Take the scores of a batch, and keep its best adapter where that is the best of all."""
        if not batch.adapters:
            return
        began = time.monotonic()
        scores = self.scorer.finish()
        waited = (time.monotonic() - began) / len(batch.adapters)
        for candidate in batch.adapters:
            seconds = batch.seconds[candidate] + waited
            self._note(Line.scored(candidate, self.board.key, scores[str(candidate)], seconds))
        self._sent.difference_update(batch.adapters)
        leader = next(iter(ranked(self._lines.values())), None)
        if leader is not None and leader.candidate in batch.adapters:
            self.winner.keep(leader, batch.adapters[leader.candidate])

    def _note(self, line: Line) -> None:
        self.board.add(line)
        self._lines[line.candidate] = line
        self._computed += 1
        self.watcher.line(line, new=True)

    def _best(self) -> Line:
        found = ranked(self._lines.values())
        if not found:
            first = next(iter(self._lines.values()))
            raise ConfigError(
                f"none of {len(self._lines)} candidates has a score; {first.candidate}: {first.error}"
            )
        return found[0]

    def _on_test_rows(self, best: Line) -> Mapping[str, Scored]:
        """Test rows are looked at here, once, after the choice."""
        chosen = {str(best.candidate): self.winner.adapter()}
        if (
            self.settings.reference != best.candidate
            and self._lines[self.settings.reference].mean is not None
        ):
            chosen[str(self.settings.reference)] = self.material.merged(self.settings.reference)
        open_still = {**self.standing, **chosen}
        found: dict[str, Scored] = {}
        for name, scored in self.tested.items():  # the run's own result may be the reference, or win
            twins = [other for other in open_still if _same(open_still[other], self.standing[name])]
            found |= dict.fromkeys(twins, scored)
        missing = {name: adapter for name, adapter in open_still.items() if name not in found}
        found |= self.scorer.now(missing, "test") if missing else {}
        return {name: scored for name, scored in found.items() if scored.summary is not None}


def _same(one: Adapter, other: Adapter) -> bool:
    return one.tensors.keys() == other.tensors.keys() and all(
        torch.equal(value, other.tensors[name]) for name, value in one.tensors.items()
    )
