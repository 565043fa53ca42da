"""Adapters to scores: what a study asks of its silos, one name at a time blamed for what goes wrong."""

from __future__ import annotations

import math
from collections.abc import Mapping
from dataclasses import dataclass, field
from typing import Protocol

from fedmerge.adapters import Adapter
from fedmerge.errors import FedMergeError
from fedmerge.server.scores import Summary
from fedmerge.server_app.scoring import Scores


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

    def finish(self) -> dict[str, Scored]:
        """Wait for what was begun."""
        ...
