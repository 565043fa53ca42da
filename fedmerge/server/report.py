"""What a round leaves behind in numbers: one line of metrics.jsonl."""

from __future__ import annotations

import dataclasses
from collections import Counter
from collections.abc import Iterable, Mapping, Sequence
from dataclasses import dataclass, field
from typing import Any

from flwr.app import MetricRecord

from fedmerge.adapters.merge import MergeReport
from fedmerge.server.absence import Absence
from fedmerge.server.guard import Admitted, Refusal
from fedmerge.server.scores import Summary
from fedmerge.wire.protocol import EXAMPLES


@dataclass
class RoundReport:
    """One round in numbers.

    Args:
        round: from 1.
        asked: the silos drawn.
        admitted: by silo: examples, weight, norm of the delta, and what it measured.
        refused: the replies dropped, and why.
        missing: the silos that were asked and did not answer, or whose node was not connected.
        missing_since: of each of these: the first round in a row that it missed, when that was, how many
            rounds it is by now, and why.
        flagged: by silo, what is odd about an admitted delta: "all zero", "shortened to 0.01",
            "counts as 500 of 9000 rows".
        received: scores of the round's broadcast, that is of what the round before made.
        merge: what the merge reports.
        bytes_down: of the instructions' content.
        bytes_up: of the replies' content, refused ones included.
        seconds: by phase: wait (for nodes), train (until the last reply), merge, write, and shadows where
            these are scored in every round.
        failed: why the round could not be closed; "" where it was.
        rejected: why the round's broadcast was taken back and its replies, which then weigh nothing, were
            discarded; "" where they were merged.
        shadows: one-step counterfactuals, beside "merged": what each rule would have made of this round's
            replies, with no silo trained on from it. By name: metric, mean, worst, and "silos" (by silo) or
            "server"; or "error". Empty where they are not scored in every round.
        shadow_bytes: of the messages that had the silos score them, "down" and "up".
        refusals: how many replies were dropped, by the code of the reason, "reply/forged".
    """

    round: int
    asked: tuple[str, ...]
    admitted: dict[str, dict[str, Any]] = field(default_factory=dict)
    refused: list[Refusal] = field(default_factory=list)
    missing: list[str] = field(default_factory=list)
    missing_since: dict[str, Absence] = field(default_factory=dict)
    flagged: dict[str, str] = field(default_factory=dict)
    received: Summary | None = None
    merge: MergeReport | None = None
    bytes_down: int = 0
    bytes_up: int = 0
    seconds: dict[str, float] = field(default_factory=dict)
    failed: str = ""
    rejected: str = ""
    shadows: dict[str, dict[str, Any]] = field(default_factory=dict)
    shadow_bytes: dict[str, int] = field(default_factory=lambda: {"down": 0, "up": 0})
    refusals: dict[str, int] = field(default_factory=dict)

    def admit(self, replies: Sequence[Admitted], weights: Sequence[float]) -> None:
        """Note the admitted replies and what each counts."""
        for reply, weight in zip(replies, weights, strict=True):
            self.admitted[reply.silo] = {
                "examples": reply.examples,
                "weight": weight,
                "norm": reply.norm,
                "metrics": dict(reply.metrics),
            }
            if reply.norm == 0:
                self.flag(reply.silo, "all zero")

    def flag(self, silo: str, what: str) -> None:
        """Note what is odd about a reply that is admitted."""
        before = self.flagged.get(silo)
        self.flagged[silo] = f"{before}; {what}" if before else what

    def refuse(self, refused: Iterable[Refusal]) -> None:
        """Note the replies dropped, and count them."""
        self.refused = sorted(refused, key=lambda refusal: (refusal.silo, refusal.reason))
        self.refusals = dict(sorted(Counter(refusal.code for refusal in self.refused).items()))

    def to_dict(self) -> dict[str, Any]:
        """The report in plain Python, as observers get it."""
        values = dataclasses.asdict(self)
        values["asked"] = list(self.asked)
        values["refused"] = [{"silo": refusal.silo, "reason": refusal.reason} for refusal in self.refused]
        return values

    def sentence(self) -> str:
        """The round in one line, for the log."""
        if self.rejected:
            return f"round {self.round}: {self.rejected}; its {len(self.admitted)} replies are discarded"
        parts = [f"round {self.round}: merged {len(self.admitted)} of {len(self.asked)} silos"]
        parts += [f"{len(self.refused)} refused"] * bool(self.refused)
        parts += [f"{len(self.missing)} missing: {self._absences()}"] * bool(self.missing)
        if self.received is not None:
            parts.append(f"{self.received.metric} before it {self.received.mean:.4f} (mean over silos)")
        parts.append(f"{sum(self.seconds.values()):.1f} s")
        return ", ".join(parts)

    def _absences(self) -> str:
        known = [absence.sentence(silo) for silo, absence in self.missing_since.items()]
        return " and ".join(known or self.missing)


def average(metrics: Sequence[Mapping[str, float]], weights: Sequence[float]) -> MetricRecord:
    """The weighted mean of each metric that all silos report, without the weight itself.

    Example:
        >>> average([{"loss": 1.0, "x": 1.0}, {"loss": 3.0}], [1.0, 3.0])
        {'loss': 2.5}
    """
    shared = set.intersection(*(set(entry) for entry in metrics)) - {EXAMPLES} if metrics else set()
    total = sum(weights)
    record = MetricRecord()
    for key in sorted(shared):
        record[key] = sum(entry[key] * weight for entry, weight in zip(metrics, weights, strict=True)) / total
    return record
