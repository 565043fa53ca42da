"""What happened in a merge of checkpoints."""

from __future__ import annotations

from dataclasses import dataclass, field

import torch

from fedmerge.checkpoints.arithmetic import Tally
from fedmerge.checkpoints.task import Task


@dataclass(frozen=True)
class CheckpointReport:
    """What happened in a merge of checkpoints, in plain values; clients in the order of the arithmetic.

    Args:
        rule: its text.
        models: what the fine-tunes were called.
        weights: their raw weights.
        left_out: how many of weight 0 were dropped.
        tensors: number of tensors written.
        parameters: number of values written.
        bytes_written: of all shards.
        norms: Frobenius norm of each fine-tune's delta.
        relative: the same over the base's norm.
        cosines: `(clients, clients)` between deltas.
        change: norm of the merged change over the base's norm.
        rounding: share of the merged change, by norm, that rounding to the base's dtype took.
        device: where the rule ran.
        kernel: which implementation ran.
        notes: what was borne.
        seconds: wall clock.
    """

    rule: str
    models: tuple[str, ...]
    weights: tuple[float, ...]
    left_out: int
    tensors: int
    parameters: int
    bytes_written: int
    norms: tuple[float, ...]
    relative: tuple[float, ...]
    cosines: tuple[tuple[float, ...], ...]
    change: float
    rounding: float
    device: str
    kernel: str
    notes: tuple[str, ...] = field(default=())
    seconds: float = 0.0


def report_of(task: Task, tally: Tally, seconds: float) -> CheckpointReport:
    """What happened, from what was counted while tiles went by."""
    norms = tally.gram.diagonal().clamp(min=0).sqrt()
    scale = torch.where(norms > 0, norms, 1.0)
    cosines = (tally.gram / scale / scale.unsqueeze(1)).clamp(-1, 1)
    base = tally.base**0.5
    return CheckpointReport(
        rule=str(task.rule),
        models=tuple(client.label for client in task.clients),
        weights=tuple(client.weight for client in task.clients),
        left_out=task.left_out,
        tensors=len(task.base.entries),
        parameters=sum(entry.coordinates for entry in task.base.entries.values()),
        bytes_written=task.base.size,
        norms=tuple(norms.tolist()),
        relative=tuple((norms / base).tolist() if base else norms.tolist()),
        cosines=tuple(tuple(row) for row in cosines.tolist()),
        change=(tally.step**0.5 / base) if base else 0.0,
        rounding=(tally.lost / tally.step) ** 0.5 if tally.step else 0.0,
        device=str(task.device),
        kernel=task.kernel,
        notes=task.notes,
        seconds=seconds,
    )
