"""Fused merges on a GPU, in Triton: a few launches for all tensors of an adapter, no copy of the inputs.

Same bits as the composition of stages, on the GPU or on the CPU: float64 sums client by client, products and
sums not fused into one operation, one rounding.
"""

from __future__ import annotations

from collections.abc import Sequence

import numpy as np
import torch
import triton
import triton.language as tl
from torch import Tensor

from fedmerge.kernels.gpu_select import thresholds
from fedmerge.kernels.gpu_table import BLOCK, KINDS, WARPS, address, table_of
from fedmerge.kernels.plan import Fused


def serves(plan: Fused, dtype: torch.dtype, weights: Tensor) -> bool:
    """Whether there is a kernel for tensors of a dtype with these weights.

    Args:
        plan: what is to be computed.
        dtype: of the values as they lie on the device: float32, bfloat16 or float16.
        weights: raw, `(clients,)`.
    """
    return dtype in KINDS and plan.bears(weights)


def merge_tensors(
    plan: Fused,
    values: Sequence[Sequence[Tensor]],
    weights: Tensor,
    keys: np.ndarray | None,
    outputs: Sequence[Tensor],
) -> None:
    """Merge tensors, each of several clients.

    Args:
        plan: what to compute; one that `serves`.
        values: for each tensor, each client's values: flat, contiguous, finite, of one dtype, on one device.
        weights: raw, `(clients,)`, all above 0.
        keys: start and increment of the random stream of each tensor of each client (randomness.py), int64
            `(tensors, clients, 2)`; None where the plan drops nothing.
        outputs: for each tensor where its merged values go: flat, contiguous, float32.
    """
    filled = [place for place, output in enumerate(outputs) if output.numel()]
    if filled:
        with torch.cuda.device_of(outputs[0]):  # Triton launches on the current device
            _launch(plan, values, weights, keys, outputs, filled)


def _launch(
    plan: Fused,
    values: Sequence[Sequence[Tensor]],
    weights: Tensor,
    keys: np.ndarray | None,
    outputs: Sequence[Tensor],
    filled: Sequence[int],
) -> None:
    """Merge those tensors that have values."""
    counted = torch.ones_like(weights) if plan.equal else weights
    table, (targets, shares, factors, streams, limit, density) = table_of(
        [values[place] for place in filled],
        beside=[
            np.array([outputs[place].data_ptr() for place in filled], np.int64),
            counted.cpu().double().numpy(),
            np.array(plan.factors(counted), np.float64),
            np.zeros((1, 2), np.int64) if keys is None else keys[list(filled)],
            np.array([drop_limit(plan.drop)], np.int64),
            np.array([plan.drop or 1.0], np.float64),
        ],
    )
    trimmed = None if plan.keep is None else thresholds(table, plan.keep)
    _merge[(table.blocks,)](
        *table.arguments,
        targets,
        table.shape[1],
        shares,
        factors,
        limit if trimmed is None else trimmed.bits,
        limit if trimmed is None else trimmed.last,
        streams,
        limit,
        density,
        scales=len(plan.scales),
        trims=trimmed is not None,
        drops=plan.drop is not None,
        elects=plan.elect,
        kind=table.kind,
        block=BLOCK,
        num_warps=WARPS,
        enable_fp_fusion=False,
    )


def drop_limit(density: float | None) -> int:
    """Random numbers k * 2**-53 below the density are those with k below this."""
    return int(np.ceil((1.0 if density is None else density) * 2.0**53))


@triton.jit
def _merge(
    addresses, sizes, owners, starts, targets, clients, weights, factors, bits, last, keys, limit, density,
    scales: tl.constexpr, trims: tl.constexpr, drops: tl.constexpr, elects: tl.constexpr,
    kind: tl.constexpr, block: tl.constexpr,
):  # fmt: skip
    """Merge one block of one tensor."""
    place = tl.program_id(0)
    tensor = tl.load(owners + place)
    index = tl.load(starts + place) + tl.arange(0, block)
    inside = index < tl.load(sizes + tensor * clients)
    total = tl.zeros([block], tl.float64)
    for client in range(clients):
        value = _left(
            addresses, tensor * clients + client, index, inside, bits, last, keys, limit, density,
            trims, drops, kind,
        )  # fmt: skip
        total += value * tl.load(weights + client)
    if elects:
        vote = total
        total = tl.zeros([block], tl.float64)
        divisor = tl.zeros([block], tl.float64)
        for client in range(clients):
            value = _left(
                addresses, tensor * clients + client, index, inside, bits, last, keys, limit, density,
                trims, drops, kind,
            )  # fmt: skip
            weight = tl.load(weights + client)
            agrees = value * vote > 0
            total += tl.where(agrees, value * weight, 0.0)
            divisor += tl.where(agrees, weight, 0.0)
        total = total / tl.where(divisor > 0, divisor, 1.0)
    total = total * tl.load(factors) / tl.load(factors + 1)
    for scale in tl.static_range(scales):
        total = total * tl.load(factors + 2 + scale)
    target = tl.load(targets + tensor).to(tl.pointer_type(tl.float32))
    tl.store(target + index, total.to(tl.float32), mask=inside)


@triton.jit
def _left(
    addresses, segment, index, inside, bits, last, keys, limit, density,
    trims: tl.constexpr, drops: tl.constexpr, kind: tl.constexpr,
):  # fmt: skip
    """What a trim or a drop leaves of one client's block, float64."""
    loaded = tl.load(address(addresses, segment, kind) + index, mask=inside, other=0).to(tl.float32)
    value = loaded.to(tl.float64)
    if trims:
        magnitude = loaded.to(tl.int32, bitcast=True) & 0x7FFFFFFF
        least = tl.load(bits + segment)
        kept = (magnitude > least) | ((magnitude == least) & (index <= tl.load(last + segment)))
        value = tl.where(kept, value, 0.0)
    if drops:
        increment = tl.load(keys + segment * 2 + 1).to(tl.uint64, bitcast=True)
        number = (
            tl.load(keys + segment * 2).to(tl.uint64, bitcast=True) + (index + 1).to(tl.uint64) * increment
        )
        number = (number ^ (number >> 30)) * 0xBF58476D1CE4E5B9
        number = (number ^ (number >> 27)) * 0x94D049BB133111EB
        number = (number ^ (number >> 31)) >> 11
        kept = number.to(tl.int64, bitcast=True) < tl.load(limit)
        value = tl.where(kept, value / tl.load(density), 0.0)
    return value
