"""Tiles merged by the fused CPU kernels, where they serve the rule: the bits of the plain composition."""

from __future__ import annotations

from collections.abc import Iterable

import numpy as np
import torch
from torch import Tensor

from fedmerge.errors import RuleError, nearest
from fedmerge.kernels.plan import fused
from fedmerge.rules import Draw, Rule
from fedmerge.rules.randomness import stream_key

KERNELS = ("auto", "plain", "numba")

BYTES = 200 << 20
"""What numba and its compiler take of memory: 160 MB measured where nothing was compiled before."""

WORTH = 1 << 26
"""Values of all clients from which the kernels' start is worth its seconds."""


def chosen(kernel: str, device: torch.device, values: int, memory: int) -> str:
    """The implementation that a merge uses.

    Args:
        kernel: "plain", "numba", or "auto" for numba where it pays and there is memory for it.
        device: where the rule runs.
        values: of all clients.
        memory: working bytes.

    Raises:
        RuleError: another name, or a kernel that can't be had here.

    Example:
        >>> cpu = torch.device("cpu")
        >>> chosen("auto", cpu, 1 << 30, 1 << 30), chosen("auto", cpu, 1 << 30, 64 << 20)
        ('numba', 'plain')
    """
    if kernel not in KERNELS:
        raise RuleError(f"kernel {kernel!r} for whole checkpoints: {nearest(kernel, KERNELS)}")
    if kernel == "numba" and (device.type != "cpu" or memory <= BYTES):
        raise RuleError(
            f"kernel 'numba' runs on the CPU and takes {BYTES} bytes; {memory} are left to work in"
        )
    pays = device.type == "cpu" and values >= WORTH and memory >= 3 * BYTES
    return "numba" if kernel == "numba" or (kernel == "auto" and pays) else "plain"


def served(rules: Iterable[Rule]) -> bool:
    """Whether a kernel stands for any of these rules.

    Example:
        >>> from fedmerge.rules import fedavg, median
        >>> served([median(), fedavg()]), served([median()])
        (True, False)
    """
    return any((plan := fused(rule)) is not None and plan.keep is None for rule in rules)


def merge_tile(rule: Rule, rows: Tensor, weights: Tensor, draw: Draw) -> Tensor | None:
    """One tile's merged values, None where no kernel serves the rule.

    Args:
        rule: separable.
        rows: `(clients, width)`, finite.
        weights: raw, `(clients,)`.
        draw: of the tile; its offset moves the random streams on.
    """
    plan = fused(rule)
    if plan is None or plan.keep is not None:
        return None
    from fedmerge.kernels import cpu  # noqa: PLC0415 (it loads numba)

    if not cpu.serves(plan, rows.dtype, weights):
        return None
    merged = torch.empty(rows.shape[1], dtype=rows.dtype)
    keys = (
        None if plan.drop is None else np.array([[_key(draw, silo) for silo in draw.silos]], dtype=np.int64)
    )
    cpu.merge_tensors(plan, [list(rows)], weights, keys, [merged], threads=torch.get_num_threads())
    return merged


def _key(draw: Draw, silo: str) -> tuple[int, int]:
    """The stream of one silo from the tile's first coordinate on: a counter's start, moved on."""
    start, increment = stream_key(draw.seed, draw.round, silo, draw.tensor)
    moved = (start + draw.offset * increment) % 2**64
    return moved - 2**64 if moved >= 2**63 else moved, increment
