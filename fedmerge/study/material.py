"""What a sweep merges: a round's recorded deltas, or adapters from disk, with all that a merge must know."""

from __future__ import annotations

import hashlib
import json
from collections.abc import Mapping
from dataclasses import dataclass, field
from functools import cached_property

from fedmerge.adapters import Adapter
from fedmerge.adapters.foreign import fitted
from fedmerge.adapters.merge import merge
from fedmerge.adapters.statistics import Statistics
from fedmerge.errors import AdapterMismatch, RuleError
from fedmerge.rules import parse_rule
from fedmerge.rules.statistics import needs_of
from fedmerge.server import storage
from fedmerge.study.candidates import Candidate
from fedmerge.study.defaults import Situation


@dataclass(frozen=True)
class Material:
    """Deltas and what belongs to them.

    Args:
        deltas: by name, sorted.
        weights: raw, by the same names.
        received: what all of them started from; None for adapters that were trained apart.
        statistics: what each silo measured, by the same names; empty where nothing was kept.
        seed: of random masks.
        round: likewise.
        device: that merges.
    """

    deltas: Mapping[str, Adapter]
    weights: Mapping[str, float]
    received: Adapter | None = None
    statistics: Mapping[str, Statistics] = field(default_factory=dict)
    seed: int = 0
    round: int = 0
    device: str = "auto"

    @cached_property
    def situation(self) -> Situation:
        """What decides which merges make sense."""
        measured = [frozenset(self.statistics.get(name, {})) for name in self.deltas]
        return Situation.of(self.deltas, self.received, frozenset.intersection(*measured))

    @cached_property
    def hashes(self) -> dict[str, str]:
        """SHA-256 of each delta's values, and of the received adapter's under ""."""
        everything = dict(self.deltas) | ({} if self.received is None else {"": self.received})
        return {name: _hash(adapter) for name, adapter in everything.items()}

    @cached_property
    def digest(self) -> str:
        """A hash of all that decides what a merge gives."""
        decisive = {
            "deltas": self.hashes, "weights": dict(self.weights), "seed": self.seed, "round": self.round,
            "statistics": sorted(self.situation.statistics),
        }  # fmt: skip
        return hashlib.sha256(json.dumps(decisive, sort_keys=True).encode()).hexdigest()

    def merged(self, candidate: Candidate) -> Adapter:
        """The adapter that a candidate makes of the deltas.

        Raises:
            RuleError: the rule can't merge these deltas, or not in this space.
            AdapterMismatch: the merge overflows.
        """
        rule = parse_rule(candidate.rule)
        needs = needs_of(rule)
        if missing := needs - self.situation.statistics:
            raise RuleError(
                f"{rule} needs {' and '.join(map(repr, sorted(missing)))} of every silo, which was not kept: "
                "the run's own rule or shadows must ask for it"
            )
        statistics = [{name: self.statistics[silo][name] for name in needs} for silo in self.deltas]
        return merge(
            list(self.deltas.values()),
            [self.weights[name] for name in self.deltas],
            received=self.received,
            rule=rule,
            space=candidate.space,
            names=list(self.deltas),
            seed=self.seed,
            round=self.round,
            device=self.device,
            statistics=statistics if needs else None,
        ).adapter


def at_scaling(adapter: Adapter, like: Adapter) -> Adapter:
    """The same updates with the LoRA scaling of another adapter, by which a loaded base is set up.

    Args:
        adapter: whose factors B are multiplied.
        like: gives the scaling.

    Raises:
        AdapterMismatch: an adapter without LoRA settings.
    """
    if adapter.lora is None or like.lora is None:
        raise AdapterMismatch("an adapter has no LoRA settings, so that the length of its updates is unknown")
    return fitted(adapter, like.lora.of_rank(adapter.lora.rank))


def _hash(adapter: Adapter) -> str:
    return storage.sha256_of(storage.tensors_file(dict(sorted(adapter.tensors.items()))))
