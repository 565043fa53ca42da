"""What is inspected: the deltas of a run's round, or adapters on disk that each start from the base."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass

import torch
from torch import Tensor

from fedmerge.adapters import Adapter
from fedmerge.adapters.blend import blend
from fedmerge.adapters.checks import check_weights
from fedmerge.study.recorded import RecordedRound, RecordedRun, read_object

BASE, RECEIVED, MERGE = "base", "received", "merge"


@dataclass(frozen=True, eq=False)
class Subject:
    """Deltas with what belongs to them.

    Args:
        names: of the silos or adapters.
        deltas: trained minus received; whole adapters where nothing was received.
        received: what they started from; None where that is the base itself.
        weights: raw.
        merged: what the run made of them; None takes the weighted mean of the true updates.
        how: the merge in words.
        start: "base", or "received" where what was received had changed the base already.
        fingerprint: of the base, where it is known that all were trained from it.
    """

    names: tuple[str, ...]
    deltas: tuple[Adapter, ...]
    received: Adapter | None = None
    weights: tuple[float, ...] | None = None
    merged: Adapter | None = None
    how: str = "the weighted mean of the true updates"
    start: str = BASE
    fingerprint: str = ""

    @property
    def trained(self) -> dict[str, Adapter]:
        """Each silo's whole adapter."""
        if self.received is None:
            return dict(zip(self.names, self.deltas, strict=True))
        return {
            name: _added(self.received, delta) for name, delta in zip(self.names, self.deltas, strict=True)
        }

    @property
    def origin(self) -> Adapter | None:
        """What lines start from; None for the base, which needs no adapter."""
        return None if self.start == BASE else self.received

    @property
    def merge(self) -> Adapter:
        """The merged adapter."""
        if self.merged is not None:
            return self.merged
        weights = check_weights(self.weights, len(self.names))
        return blend(list(self.trained.values()), [weight / sum(weights) for weight in weights])


def changes_nothing(adapter: Adapter) -> bool:
    """Whether an adapter leaves the base as it is: every B is zero, and so is everything that is no pair."""
    return not any(
        bool(torch.any(tensor))
        for name, tensor in adapter.tensors.items()
        if not name.endswith("lora_A.weight")
    )


def of_round(run: RecordedRun, recorded: RecordedRound) -> Subject:
    """A round of a run; its merge is what the run made of it, server optimizer included.

    Args:
        run: the run.
        recorded: one of its rounds.
    """
    strategy = run.config.strategy
    return Subject(
        names=tuple(recorded.deltas),
        deltas=tuple(recorded.deltas.values()),
        received=recorded.received,
        weights=tuple(recorded.weights.values()),
        merged=run.made(recorded.number),
        how=f"{strategy.rule} in {strategy.space}",
        start=BASE if changes_nothing(recorded.received) else RECEIVED,
        fingerprint=fingerprint_of_run(run),
    )


def fingerprint_of_run(run: RecordedRun) -> str:
    """The base's, to which all silos of a run had to agree; "" where the run did not write it down.

    Raises:
        CheckpointError: environment.json can't be read.
    """
    return str(read_object(run.path / "environment.json").get("fingerprint", ""))


def _added(received: Adapter, delta: Adapter) -> Adapter:
    tensors: dict[str, Tensor] = {
        name: tensor.to(torch.float32) + delta.tensors[name].to(torch.float32)
        for name, tensor in received.tensors.items()
    }
    return Adapter(tensors, received.lora, dict(received.metadata))


def of_adapters(
    adapters: Mapping[str, Adapter], weights: Sequence[float] | None = None, fingerprint: str = ""
) -> Subject:
    """Adapters on disk, each of which starts from the base.

    Args:
        adapters: by name.
        weights: raw; None: all alike.
        fingerprint: of the base, where all carry it.
    """
    return Subject(
        names=tuple(adapters),
        deltas=tuple(adapters.values()),
        weights=None if weights is None else tuple(weights),
        fingerprint=fingerprint,
    )
