"""Where a run stands: the last good broadcast, to which the gate returns, and the best one so far."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass, field, replace

from fedmerge.adapters import Adapter
from fedmerge.adapters.optimizers import OptimizerState
from fedmerge.server.gate import Gate, Open
from fedmerge.server.scores import Summary, summarize
from fedmerge.wire.protocol import RECEIVED

VALIDATION = "validation"


@dataclass(frozen=True)
class Scored:
    """A broadcast, the round that made it (0 for the initial adapter), and its validation scores."""

    round: int
    adapter: Adapter
    summary: Summary


@dataclass(frozen=True)
class Good:
    """A broadcast that the gate let pass.

    Args:
        round: that made it; 0 for the initial adapter.
        adapter: what was broadcast.
        optimizer: state of the server optimizer when it was made.
        metrics: what silos measured of it, by silo; of every round that received it.
    """

    round: int
    adapter: Adapter
    optimizer: OptimizerState | None
    metrics: Mapping[str, Mapping[str, float]]

    def summary(self, metric: str) -> Summary | None:
        """Its scores by one figure; None where no silo has any."""
        return summarize(self.metrics, RECEIVED, VALIDATION, metric)


@dataclass
class Standing:
    """Judges each broadcast by the scores that came back with the replies to it.

    Args:
        gate: decides whether a broadcast may stay.
        good: the last that did; None before round 1 is scored.
        best: of those that did and were merged the one with the best mean over silos; None without scores.
    """

    gate: Gate = field(default_factory=Open)
    good: Good | None = None
    best: Scored | None = None

    def judge(
        self,
        round: int,
        received: Adapter,
        optimizer: OptimizerState | None,
        metrics: Mapping[str, Mapping[str, float]],
    ) -> str:
        """Let a round's broadcast in as the last good one, or say why it is rejected.

        Without scores nothing is rejected, as in Flower apps that send none with their replies.

        Args:
            round: in which it was received; the round before made it.
            received: the broadcast.
            optimizer: state of the server optimizer at that time.
            metrics: of the admitted replies, by silo.

        Returns:
            "", or a sentence.
        """
        good, summary = self.good, summarize(metrics, RECEIVED, VALIDATION)
        if good is not None and received is good.adapter:  # it came back after a rejection
            self.good = replace(good, metrics={**good.metrics, **metrics})
            return ""
        if good is not None and summary is not None:
            why = self.gate.judge(good.summary(summary.metric), summary)
            if why:
                return rejection(round - 1, why, f"back to {made_by(good.round)}")
        self.good = Good(round - 1, received, optimizer, metrics)
        self.score(round - 1, received, summary)
        return ""

    def score(self, round: int, adapter: Adapter, summary: Summary | None) -> None:
        """Note the validation scores of what `round` made; the best so far is kept."""
        made = round > 0  # what round 1 received is no result, however good
        if made and summary is not None and summary.better_than(self.best.summary if self.best else None):
            self.best = Scored(round, adapter, summary)

    def made(self, broadcast: Adapter | None, rounds: int) -> int:
        """Which round made the broadcast after so many: the last, or one that the run went back to."""
        return self.good.round if self.good is not None and broadcast is self.good.adapter else rounds

    def unsure(self, broadcast: Adapter | None) -> Good | None:
        """The last good broadcast, if what was made of it is still to be judged; None without a gate."""
        good = self.good
        judged = isinstance(self.gate, Open) or good is None or broadcast is good.adapter
        return None if judged else good


def made_by(round: int) -> str:
    """What a round made, in words.

    Example:
        >>> made_by(3), made_by(0)
        ('the adapter of round 3', 'the initial adapter')
    """
    return f"the adapter of round {round}" if round else "the initial adapter"


def rejection(round: int, why: str, then: str) -> str:
    """Why what `round` made is rejected, and what comes of it.

    Example:
        >>> rejection(2, "lowered accuracy at 2 of 3 silos", f"back to {made_by(1)}")
        'the merge of round 2 lowered accuracy at 2 of 3 silos: back to the adapter of round 1'
    """
    return f"the merge of round {round} {why}: {then}"
