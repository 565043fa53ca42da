"""A merge of checkpoints, prepared: who takes part, how each tensor is merged, and what that takes."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass

import torch

from fedmerge.checkpoints.deltas import Client
from fedmerge.checkpoints.treatment import FIXED, Treatment, least_memory, least_width, width_of
from fedmerge.rules import Rule
from fedmerge.wire.checkpoint import Checkpoint


@dataclass(frozen=True, eq=False)
class Task:
    """A merge of checkpoints that fit together, not yet begun.

    Args:
        base: what they were trained from.
        clients: the fine-tunes of weight above 0, in the order of the arithmetic.
        rule: how to merge.
        treatments: by tensor.
        memory: working bytes, over what the process takes already.
        device: where the rule runs.
        kernel: "plain" or "numba".
        notes: what was borne: tensors left out, other vocabularies.
        left_out: how many fine-tunes of weight 0 were dropped.
    """

    base: Checkpoint
    clients: tuple[Client, ...]
    rule: Rule
    treatments: Mapping[str, Treatment]
    memory: int
    device: torch.device
    kernel: str
    notes: tuple[str, ...] = ()
    left_out: int = 0

    @property
    def misfits(self) -> dict[str, int]:
        """Tensors that do not fit into the memory, with the bytes that each wants."""
        wanted = {
            name: least_memory(self.base.entries[name], treatment, len(self.clients))
            for name, treatment in self.treatments.items()
        }
        return {name: size for name, size in wanted.items() if size > self.memory}

    @property
    def peak(self) -> int:
        """Working bytes at most, over what the process takes before."""
        return max(self._taken(name) for name in self.treatments)

    def _taken(self, name: str) -> int:
        entry, treatment, clients = self.base.entries[name], self.treatments[name], len(self.clients)
        width = width_of(entry, treatment, clients, self.memory)
        widest = max(width, least_width(entry, treatment))
        return FIXED + widest * treatment.bytes_each(clients)

    @property
    def bytes_read(self) -> int:
        """Bytes that the merge reads of all files."""
        holders = [self.base, *(client.checkpoint for client in self.clients)]
        return sum(
            treatment.reads() * holder.entries[name].size
            for name, treatment in self.treatments.items()
            for holder in holders
            if name in holder.entries
        )
