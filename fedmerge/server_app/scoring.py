"""The final evaluation: every candidate on every silo's validation and test rows, in one message a silo."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass, replace
from typing import Any

from fedmerge.adapters import Adapter
from fedmerge.errors import RoundFailed
from fedmerge.server.reading import metrics_of, numbers_of
from fedmerge.server.scores import Summary, metric_of, summarize
from fedmerge.server_app.errands import Errands
from fedmerge.wire.protocol import RECEIVED, Instruction, instruction_content
from fedmerge.wire.records import to_record

SPLITS = ("validation", "test")
MERGED = "merged"


def score(
    errands: Errands, candidates: Mapping[str, Adapter], instruction: Instruction, *, timeout_seconds: float
) -> Scores:
    """Have every silo score every candidate.

    Args:
        errands: reach the silos.
        candidates: adapters by name; one is "merged".
        instruction: with fingerprint, seed and labels of the run.
        timeout_seconds: for all silos together.

    Raises:
        RoundFailed: no silo answered with scores.
    """
    records = {name: to_record(adapter.tensors) for name, adapter in candidates.items()}
    merged = records.pop(MERGED)  # travels as every broadcast does, and comes back as "received"
    contents = {
        silo: instruction_content(merged, replace(instruction, silo=silo, splits=SPLITS), candidates=records)
        for silo in errands.roster.names
    }
    metrics: dict[str, dict[str, float]] = {}
    for silo, content in errands.run(contents, "evaluate", timeout_seconds=timeout_seconds):
        metrics[silo] = {_renamed(key): value for key, value in numbers_of(metrics_of(content)).items()}
    if not metrics:
        raise RoundFailed("no silo scored the final candidates; the log says why. All adapters are intact")
    return Scores(dict(sorted(metrics.items())))


def _renamed(key: str) -> str:
    return MERGED + key.removeprefix(RECEIVED) if key.startswith(RECEIVED + "/") else key


@dataclass(frozen=True)
class Scores:
    """What the silos measured.

    Args:
        metrics: by silo: "<candidate>/<split>/<name>" -> value.
    """

    metrics: Mapping[str, Mapping[str, float]]

    def summary(self, candidate: str, split: str) -> Summary | None:
        """One candidate on one split; None where no silo has such rows."""
        return summarize(self.metrics, candidate, split)

    @property
    def metric(self) -> str:
        """The figure that is compared."""
        keys = [key for metrics in self.metrics.values() for key in metrics]
        found = (metric_of(keys, MERGED, split) for split in ("test", "validation"))
        return next((name for name in found if name), "loss")

    def best(self, names: tuple[str, ...]) -> str:
        """The candidate with the best mean on validation rows; the last one where none has scores."""
        chosen, leading = names[-1], self.summary(names[-1], "validation")
        for name in reversed(names[:-1]):
            summary = self.summary(name, "validation")
            if summary is not None and leading is not None and summary.better_than(leading):
                chosen, leading = name, summary
        return chosen

    def row(self, candidate: str) -> dict[str, Any]:
        """A candidate's score at each silo, on both splits; mean, pooled (over rows), worst on test rows."""
        test, validation = self.summary(candidate, "test"), self.summary(candidate, "validation")
        figures = test or validation
        row: dict[str, Any] = {
            "test": dict(test.silos) if test else {},
            "validation": dict(validation.silos) if validation else {},
        }
        if figures is not None:
            row |= {"mean": figures.mean, "pooled": figures.pooled, "worst": figures.worst}
        return row
