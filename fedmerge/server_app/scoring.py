"""The final evaluation: every candidate on every silo's rows."""

from __future__ import annotations

from collections.abc import Iterable, Mapping
from dataclasses import dataclass, replace
from typing import Any

from flwr.app import RecordDict

from fedmerge.adapters import Adapter
from fedmerge.server.reading import metrics_of, numbers_of
from fedmerge.server.scores import Summary, metric_of, summarize
from fedmerge.server_app.errands import Errand
from fedmerge.wire.protocol import RECEIVED, Instruction, instruction_content
from fedmerge.wire.records import to_record

SPLITS = ("validation", "test")
BASE = "base"
MERGED = "merged"
FIRST = "first-candidate"
"""Config key of an evaluate message: what the candidate is called that travels as the broadcast."""

CENTROIDS = "centroids"
"""The untouched base under class means of all silos' training rows: a baseline that needs no training."""


@dataclass(frozen=True)
class Scoring:
    """How much the final evaluation looks at.

    Args:
        splits: that candidates are scored on.
        rows: of each split and silo at most so many, spread evenly over it; 0 is all.
    """

    splits: tuple[str, ...] = SPLITS
    rows: int = 0


@dataclass(frozen=True)
class Ballot:
    """Candidates that one message asks each silo to score.

    Args:
        candidates: adapters by name, at least one.
        splits: that they are scored on.
        head: another head to score them with; "" is the task's own.
        round: that made them; None: the last one.
    """

    candidates: Mapping[str, Adapter]
    splits: tuple[str, ...]
    head: str = ""
    round: int | None = None

    def errands(self, silos: Iterable[str], instruction: Instruction) -> dict[str, Errand]:
        """The message to each silo, by silo."""
        # The first one travels as every broadcast does, and comes back as "received".
        first, *others = (to_record(adapter.tensors) for adapter in self.candidates.values())
        name, *names = self.candidates
        named = dict(zip(names, others, strict=True))
        round = instruction.round if self.round is None else self.round
        order = replace(instruction, round=round, splits=self.splits, head=self.head)
        return {
            silo: Errand(
                silo,
                "evaluate",
                instruction_content(first, replace(order, silo=silo), candidates=named, also={FIRST: name}),
            )
            for silo in silos
        }

    def read(self, content: RecordDict) -> dict[str, float]:
        """A silo's figures, "<candidate>/<split>/<name>" -> value."""
        first, received = next(iter(self.candidates)), RECEIVED + "/"
        return {
            f"{first}/{key.removeprefix(received)}" if key.startswith(received) else key: value
            for key, value in numbers_of(metrics_of(content)).items()
        }


def ballots(
    candidates: Mapping[str, Adapter],
    splits: tuple[str, ...] = SPLITS,
    *,
    has_test_rows: bool,
    by_round: bool = False,
) -> list[Ballot]:
    """The messages that have all candidates scored.

    What a run may keep is scored on validation rows too, which decide; the others only where they are shown.

    Args:
        candidates: adapters by name.
        splits: that what may be kept is scored on.
        has_test_rows: whether any silo has.
        by_round: a message for each round, where silos complete an adapter by what they kept of its round.
    """
    if by_round:
        rounds = {name: round_of(name) for name in candidates}
        return [
            replace(ballot, round=round)
            for round in dict.fromkeys(rounds.values())
            for ballot in ballots(
                {name: adapter for name, adapter in candidates.items() if rounds[name] == round},
                splits,
                has_test_rows=has_test_rows,
            )
        ]
    decided = {
        name: adapter for name, adapter in candidates.items() if name.partition("/")[0] in (MERGED, BASE)
    }
    reference = {name: adapter for name, adapter in candidates.items() if name == CENTROIDS}
    others = {
        name: adapter for name, adapter in candidates.items() if name not in decided and name not in reference
    }
    shown = ("test",) if has_test_rows else ("validation",)
    groups = [Ballot(decided, splits), Ballot(others, shown), Ballot(reference, shown, head="centroid")]
    return [ballot for ballot in groups if ballot.candidates]


def round_of(candidate: str) -> int | None:
    """The round that made a candidate; None: the last one.

    Example:
        >>> round_of("base"), round_of("merged/3"), round_of("merged"), round_of("alone/3")
        (0, 3, None, None)
    """
    if candidate == BASE:
        return 0
    name, _, number = candidate.partition("/")
    return int(number) if name == MERGED and number else None


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
