"""Fused merges of float32 tensors in memory: one call for all tensors of an adapter, no copy of the inputs.

Same bits as the composition of stages, whatever the number of threads.
"""

from __future__ import annotations

from collections.abc import Sequence
from concurrent.futures import ThreadPoolExecutor
from itertools import pairwise

import numpy as np
import torch
from torch import Tensor

from fedmerge.kernels.blocks import dropped, mean, trimmed
from fedmerge.kernels.plan import Fused
from fedmerge.kernels.selection import thresholds

SPLIT = 1 << 16
"""Coordinates of one task, where tensors are larger than a thread's fair part."""


def serves(plan: Fused, dtype: torch.dtype, weights: Tensor) -> bool:
    """Whether there is a kernel for tensors of a dtype with these weights.

    Args:
        plan: what is to be computed.
        dtype: of the values.
        weights: raw, `(clients,)`.

    Example:
        >>> serves(Fused(combine="mean"), torch.float64, torch.ones(2))
        False
    """
    return dtype == torch.float32 and plan.bears(weights)


def merge_tensors(
    plan: Fused,
    values: Sequence[Sequence[Tensor]],
    weights: Tensor,
    keys: np.ndarray | None,
    outputs: Sequence[Tensor],
    threads: int = 1,
) -> None:
    """Merge tensors, each of several clients.

    Args:
        plan: what to compute; one that `serves`.
        values: for each tensor, each client's values: flat, contiguous, float32, finite, in memory.
        weights: raw, `(clients,)`, all above 0.
        keys: start and increment of the random stream of each tensor of each client (randomness.py), int64
            `(tensors, clients, 2)`; None where the plan drops nothing.
        outputs: for each tensor where its merged values go: flat, contiguous, float32.
        threads: how many work side by side.
    """
    jobs = _Jobs(plan, values, weights, keys, outputs)
    tasks = jobs.tasks(threads)
    if threads == 1 or len(tasks) == 1:
        for task in tasks:
            jobs.run(*task)
        return
    with ThreadPoolExecutor(threads) as pool:
        if jobs.split:
            list(pool.map(jobs.prepare, range(len(jobs.sizes))))
        list(pool.map(lambda task: jobs.run(*task), tasks))


class _Jobs:
    """The arrays that the compiled code works on. The tensors behind the addresses are held by the caller."""

    def __init__(
        self,
        plan: Fused,
        values: Sequence[Sequence[Tensor]],
        weights: Tensor,
        keys: np.ndarray | None,
        outputs: Sequence[Tensor],
    ) -> None:
        counted = torch.ones_like(weights) if plan.equal else weights
        self.weights = counted.to(torch.float64).numpy()
        self.plan = plan
        self.addresses = np.array(
            [[tensor.data_ptr() for tensor in clients] for clients in values], dtype=np.int64
        )
        self.outputs = np.array([tensor.data_ptr() for tensor in outputs], dtype=np.int64)
        self.sizes = np.array([tensor.numel() for tensor in outputs], dtype=np.int64)
        self.keys = None if keys is None else keys.view(np.uint64)
        # Thresholds: the smallest magnitude kept, and up to which index just that one is. As yet all are.
        self.bits = np.zeros(self.addresses.shape, dtype=np.int32)
        self.last = np.broadcast_to(self.sizes[:, None], self.addresses.shape).copy()
        self.factors = np.array(plan.factors(counted))
        self.split = False

    def tasks(self, threads: int) -> list[tuple[int, int, int, int]]:
        """First and last tensor, first and last coordinate of each task.

        Runs of whole tensors as even as may be, so that a tensor's thresholds are found and used while its
        values are in cache; where one tensor is larger than a fair part, pieces of tensors.
        """
        total = int(self.sizes.sum())
        fair = total / threads
        if threads == 1 or self.sizes.max(initial=0) <= max(fair / 4, SPLIT):
            ends = np.searchsorted(np.cumsum(self.sizes), [fair * part for part in range(1, threads)])
            bounds = [0, *(int(end) for end in ends), len(self.sizes)]
            return [(first, last, 0, -1) for first, last in pairwise(bounds) if first < last]
        self.split = True
        return [
            (tensor, tensor + 1, start, min(start + SPLIT, int(size)))
            for tensor, size in enumerate(self.sizes)
            for start in range(0, int(size), SPLIT)
        ]

    def prepare(self, tensor: int) -> None:
        """Find the thresholds of one tensor."""
        if self.plan.keep is not None and self.sizes[tensor]:
            thresholds(
                self.addresses[tensor],
                self.sizes[tensor],
                self.plan.keep,
                self.bits[tensor],
                self.last[tensor],
            )

    def run(self, first: int, last: int, start: int, stop: int) -> None:
        """Merge the tensors `first` to `last`, or the coordinates `start` to `stop` of one."""
        for tensor in range(first, last):
            if stop < 0:
                self.prepare(tensor)
            self._merge(tensor, start, int(self.sizes[tensor]) if stop < 0 else stop)

    def _merge(self, tensor: int, start: int, stop: int) -> None:
        plan, span = self.plan, (self.addresses[tensor], start, stop)
        rest = self.weights, self.factors
        output = self.outputs[tensor]
        if plan.drop is not None and self.keys is not None:
            dropped(*span, self.keys[tensor], plan.drop, *rest, plan.elect, output)
        elif plan.keep is not None or plan.elect:
            trimmed(*span, self.bits[tensor], self.last[tensor], *rest, plan.elect, output)
        else:
            mean(*span, *rest, output)
