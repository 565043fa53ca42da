"""Adapters to scores: what a study asks of its silos, one name at a time blamed for what goes wrong."""

from __future__ import annotations

import itertools
import math
from collections.abc import Mapping
from dataclasses import dataclass, field
from typing import Protocol

from flwr.app import Message

from fedmerge.adapters import Adapter
from fedmerge.adapters.identity import content_names
from fedmerge.engine.identity import stamp
from fedmerge.engine.local import NODE
from fedmerge.server.scores import Summary
from fedmerge.server_app.errands import problem_of
from fedmerge.server_app.scoring import Ballot, Scores
from fedmerge.study.bench import Bench
from fedmerge.study.material import at_scaling
from fedmerge.wire.protocol import Instruction

_PULL_SECONDS = 0.25


@dataclass(frozen=True)
class Scored:
    """What became of one adapter.

    Args:
        summary: its scores; None where it has none.
        counts: what each silo's score is over: rows, or bytes of text.
        error: why it has no score; "" where it has one, or where no silo has rows of the split.
        passing: whether that may not come again, as when a process ran out of memory.
    """

    summary: Summary | None
    counts: Mapping[str, float] = field(default_factory=dict)
    error: str = ""
    passing: bool = False

    @classmethod
    def of(cls, scores: Scores, name: str, split: str) -> Scored:
        """Read one adapter's scores; what is not finite is an error."""
        summary = scores.summary(name, split)
        if summary is None:
            return cls(None)
        if bad := [silo for silo, value in summary.silos.items() if not math.isfinite(value)]:
            return cls(None, error=f"its {summary.metric} is not finite at {', '.join(bad)}")
        counts = {silo: scores.metrics[silo].get(f"{name}/{split}/count", 1.0) for silo in summary.silos}
        return cls(summary, counts)


class Scorer(Protocol):
    """Scores adapters on the silos' rows, while something else can be done."""

    def now(self, adapters: Mapping[str, Adapter], split: str) -> dict[str, Scored]:
        """Score and wait."""
        ...

    def begin(self, adapters: Mapping[str, Adapter]) -> None:
        """Begin to score on validation rows."""
        ...

    def poll(self) -> None:
        """Hand on work to who has become idle; costs nothing where there is none."""
        ...

    def finish(self) -> dict[str, Scored]:
        """Wait for what was begun."""
        ...


class BenchScorer:
    """Scores on a bench's silos. Work goes to its workers directly, so that nobody waits for them.

    Args:
        bench: inside its `with`.
        rows: validation rows of each silo that are scored, at even distances; 0 is all.
    """

    def __init__(self, bench: Bench, rows: int = 0) -> None:
        """Ask nothing yet."""
        self._bench = bench
        self._rows = rows
        self._initial = bench.initial  # whose scaling the workers' base is set up for
        self._numbers = itertools.count(1)
        self._ballot = Ballot({}, ())
        self._adapters: Mapping[str, Adapter] = {}
        self._twins: dict[str, str] = {}  # name -> name of an equal adapter that is scored in its place
        self._waiting: dict[str, str] = {}
        self._metrics: dict[str, dict[str, float]] = {}
        self._errors: dict[str, str] = {}

    def now(self, adapters: Mapping[str, Adapter], split: str) -> dict[str, Scored]:
        """Score and wait; test rows are scored whole."""
        self._send(adapters, split, self._rows if split == "validation" else 0)
        return self._collected()

    def begin(self, adapters: Mapping[str, Adapter]) -> None:
        """Begin to score on validation rows."""
        self._send(adapters, "validation", self._rows)

    def poll(self) -> None:
        """Take what is there, so that the next silo's message goes to the worker that is idle."""
        if self._waiting:
            self._take(0.0)

    def finish(self) -> dict[str, Scored]:
        """Wait for what was begun; who has no score is asked for alone, as another may be to blame."""
        adapters = self._adapters
        found = self._collected()
        failed = [name for name, scored in found.items() if scored.summary is None]
        if len(adapters) > 1:
            for name in failed:
                found |= self.now({name: adapters[name]}, "validation")
        return found

    def _send(self, adapters: Mapping[str, Adapter], split: str, rows: int) -> None:
        bench = self._bench
        order = Instruction(
            seed=bench.config.run.seed, fingerprint=bench.fingerprint, labels=bench.labels, rows=rows
        )
        self._adapters, self._twins = adapters, twins(adapters)
        scaled = {name: at_scaling(adapters[name], self._initial) for name in set(self._twins.values())}
        self._ballot = Ballot(dict(sorted(scaled.items())), (split,))
        self._metrics, self._errors = {}, {}
        for silo, errand in self._ballot.errands(bench.silos, order).items():
            message = Message(errand.content, NODE, errand.message_type, group_id=errand.message_type)
            message_id = f"study {next(self._numbers)}"
            stamp(message, message_id)
            self._waiting[message_id] = silo
            bench.executor.submit(message)

    def _collected(self) -> dict[str, Scored]:
        while self._waiting:
            self._take(_PULL_SECONDS)
        if self._errors:
            silo, error = min(self._errors.items())
            failed = Scored(None, error=f"silo {silo!r}: {error}", passing=_may_pass(error))
            return dict.fromkeys(self._adapters, failed)
        (split,) = self._ballot.splits
        scores = Scores(dict(sorted(self._metrics.items())))
        return {name: Scored.of(scores, self._twins[name], split) for name in self._adapters}

    def _take(self, timeout_seconds: float) -> None:
        for reply in self._bench.executor.collect(timeout_seconds):
            silo = self._waiting.pop(reply.metadata.reply_to_message_id, None)
            if silo is None:
                continue
            if problem := problem_of(reply, reveal=True):
                self._errors[silo] = problem
                continue
            self._metrics[silo] = self._ballot.read(reply.content)


def twins(adapters: Mapping[str, Adapter]) -> dict[str, str]:
    """For each name that of the first adapter with the same values: equal adapters are scored once.

    Example:
        >>> import torch
        >>> one, two = Adapter({"x": torch.ones(2)}), Adapter({"x": torch.zeros(2)})
        >>> twins({"fedavg": one, "base": two, "kept": one})
        {'fedavg': 'fedavg', 'base': 'base', 'kept': 'fedavg'}
    """
    contents = dict(zip(adapters, content_names(list(adapters.values())), strict=True))
    first: dict[str, str] = {}
    for name, content in contents.items():
        first.setdefault(content, name)
    return {name: first[content] for name, content in contents.items()}


def _may_pass(error: str) -> bool:
    """Whether a silo's failure has to do with the machine and not with the adapter."""
    return "memory" in error.lower() or "died" in error
