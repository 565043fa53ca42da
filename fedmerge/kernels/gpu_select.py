"""Triton: which entry of each client's tensor is the k-th largest in magnitude, exactly, for all at once.

A *segment* is one tensor of one client. A sample of each segment says between which two magnitudes the entry
wanted should lie; one pass over the values counts those above and gathers those between, and the entry is
searched among the few that were gathered. Where the sample was wrong, or too many lie between (a tensor of
zeros, say), that segment alone is searched as a whole. No estimate decides anything.

The bits of a magnitude order as it does: they are searched digit by digit, with a histogram of each segment.
"""

from __future__ import annotations

from dataclasses import dataclass

import numpy as np
import torch
import triton
import triton.language as tl
from torch import Tensor

from fedmerge.kernels.gpu_table import BLOCK, WARPS, Table, address, laid_out, magnitudes, on_device

DIGITS = 256
LEVELS = ((23, 8), (15, 8), (7, 8), (0, 7))
"""Shift and width of each digit, the leading one first. More bins cost more: a warp votes on each."""

SAMPLE = 1024
"""Entries of a segment that are looked at first; of a smaller one all."""

SIGMAS = 3.5
"""How far the sample's quantiles may lie off; one segment in two thousand is then searched as a whole."""

ROOM = 8
"""One entry in eight has room among the gathered."""

INFINITE = 0x7FFFFFFF
"""No magnitude has more bits than this."""


@dataclass(frozen=True, eq=False)
class Thresholds:
    """What is kept of each segment, `(tensors, clients)`.

    Args:
        bits: of the smallest magnitude kept, int32.
        last: index up to which entries of just that magnitude are kept, int64.
    """

    bits: Tensor
    last: Tensor


def thresholds(table: Table, density: float) -> Thresholds:
    """What the largest `max(1, int(density * size))` of each segment have to reach."""
    wanted = np.array([[max(1, int(density * size)) for size in row[:1]] for row in table.host_sizes])
    wanted = wanted.repeat(table.shape[1], 1)
    source, searched = _gathered(table, wanted, density)
    bits, left, equal = _searched(source, searched)
    last = torch.empty(table.shape, dtype=torch.int64, device=table.device)
    _last[table.shape](
        table.addresses,
        table.sizes,
        table.shape[1],
        bits,
        left,
        equal,
        last,
        kind=table.kind,
        block=BLOCK,
        num_warps=WARPS,
    )
    return Thresholds(bits, last)


def _searched(table: Table, wanted: Tensor) -> tuple[Tensor, Tensor, Tensor]:
    """The bits of the entry wanted, how many entries of just these are wanted, and how many there are."""
    tensors, clients = table.shape
    prefix = torch.zeros(table.shape, dtype=torch.int32, device=table.device)
    equal = torch.zeros(table.shape, dtype=torch.int64, device=table.device)
    found = torch.zeros(len(LEVELS), tensors, clients, DIGITS, dtype=torch.int32, device=table.device)
    for (shift, width), counts in zip(LEVELS, found, strict=True):
        _histogram[(table.blocks, clients)](
            *table.arguments, clients, prefix, counts, shift, width,
            kind=table.kind, digits=DIGITS, block=BLOCK, num_warps=WARPS,
        )  # fmt: skip
        _choose[table.shape](counts, wanted, prefix, equal, clients, shift, digits=DIGITS)
    return prefix, wanted, equal


def _gathered(table: Table, wanted: np.ndarray, density: float) -> tuple[Table, Tensor]:
    """Where to search each segment's entry, and the how manieth largest it is there."""
    low, high = _bracket(table, wanted, density)
    rooms = table.host_sizes // ROOM + BLOCK
    ends = np.cumsum(rooms).reshape(rooms.shape)
    kept = torch.empty(int(ends[-1, -1]), dtype=table.dtype, device=table.device)
    addresses = (ends - rooms) * kept.element_size() + kept.data_ptr()
    places, room = on_device([addresses, rooms], table.device)
    counted = torch.zeros(2, *table.shape, dtype=torch.int32, device=table.device)
    _gather[(table.blocks, table.shape[1])](
        *table.arguments, table.shape[1], low, high, places, room, counted[0], counted[1],
        kind=table.kind, block=BLOCK, num_warps=WARPS,
    )  # fmt: skip
    above, between = counted.cpu().numpy().astype(np.int64)
    caught = (above < wanted) & (wanted <= above + between) & (between <= rooms)
    source, (left,) = laid_out(
        np.where(caught, addresses, table.host_addresses),
        np.where(caught, between, table.host_sizes),
        table.dtype,
        table.device,
        [np.where(caught, wanted - above, wanted)],
        held=(kept, *table.held),
    )
    return source, left


def _bracket(table: Table, wanted: np.ndarray, density: float) -> tuple[Tensor, Tensor]:
    """Magnitudes between which each segment's entry should lie, by a sample of it."""
    sample = torch.empty(*table.shape, SAMPLE, dtype=torch.int32, device=table.device)
    _sample[table.shape](table.addresses, table.sizes, table.shape[1], sample, kind=table.kind, count=SAMPLE)
    ordered = sample.sort(descending=True).values
    sizes, margin = table.host_sizes, SIGMAS * (SAMPLE * density * (1 - density)) ** 0.5 + 2
    rank, spread = np.where(
        sizes <= SAMPLE, (wanted - 1.0, 0.0 * wanted), (wanted * (SAMPLE / sizes), margin + 0.0 * wanted)
    )
    most = np.floor(rank - spread).astype(np.int64)
    least = np.ceil(rank + spread).astype(np.int64)
    ranks, outside = on_device(
        [np.stack([least, most], axis=2).clip(0, SAMPLE - 1), np.stack([least >= SAMPLE, most < 0])],
        table.device,
    )
    found = ordered.gather(2, ranks)
    low = found[..., 0].masked_fill(outside[0], 0)
    return low, found[..., 1].masked_fill(outside[1], INFINITE)


@triton.jit
def _sample(addresses, sizes, clients, samples, kind: tl.constexpr, count: tl.constexpr):
    """Magnitudes of entries at equal distances; -1 where a segment has no more."""
    segment = tl.program_id(0).to(tl.int64) * clients + tl.program_id(1)
    size = tl.load(sizes + segment)
    place = tl.arange(0, count)
    index = tl.where(size > count, place.to(tl.int64) * size // count, place.to(tl.int64))
    inside = index < size
    values = tl.load(address(addresses, segment, kind) + index, mask=inside, other=0)
    tl.store(samples + segment * count + place, tl.where(inside, magnitudes(values), -1))


@triton.jit
def _gather(
    addresses, sizes, owners, starts, clients, low, high, places, rooms, above, cursor,
    kind: tl.constexpr, block: tl.constexpr,
):  # fmt: skip
    """Count what of a block lies above the bracket, and write what lies in it to the segment's room."""
    place, client = tl.program_id(0), tl.program_id(1)
    segment = tl.load(owners + place).to(tl.int64) * clients + client
    index = tl.load(starts + place) + tl.arange(0, block)
    inside = index < tl.load(sizes + segment)
    values = tl.load(address(addresses, segment, kind) + index, mask=inside, other=0)
    bits, most = magnitudes(values), tl.load(high + segment)
    tl.atomic_add(above + segment, tl.sum((inside & (bits > most)).to(tl.int32)))
    chosen = inside & (bits >= tl.load(low + segment)) & (bits <= most)
    order = tl.cumsum(chosen.to(tl.int32))
    first = tl.atomic_add(cursor + segment, tl.sum(chosen.to(tl.int32)))
    target = first + order - 1
    fits = chosen & (target < tl.load(rooms + segment))
    tl.store(address(places, segment, kind) + target, values, mask=fits)


@triton.jit
def _histogram(
    addresses, sizes, owners, starts, clients, prefix, found, shift, width,
    kind: tl.constexpr, digits: tl.constexpr, block: tl.constexpr,
):  # fmt: skip
    """Count the digit of those entries of a block whose leading bits are the segment's prefix."""
    place, client = tl.program_id(0), tl.program_id(1)
    segment = tl.load(owners + place).to(tl.int64) * clients + client
    first, size = tl.load(starts + place), tl.load(sizes + segment)
    if first < size:
        index = first + tl.arange(0, block)
        inside = index < size
        bits = magnitudes(tl.load(address(addresses, segment, kind) + index, mask=inside, other=0))
        known = tl.load(prefix + segment)
        counted = inside & ((bits >> (shift + width)) == (known >> (shift + width)))
        # What does not count goes to the first bin and is taken out again: older Tritons know no mask here.
        digit = tl.where(counted, (bits >> shift) & ((1 << width) - 1), 0)
        bins = tl.arange(0, digits)
        counts = tl.histogram(digit, digits) - tl.where(bins == 0, block - tl.sum(counted.to(tl.int32)), 0)
        tl.atomic_add(found + segment * digits + bins, counts, mask=counts > 0)


@triton.jit
def _choose(found, wanted, prefix, equal, clients, shift, digits: tl.constexpr):
    """The digit of the entry wanted, how many of its digit are wanted, and how many there are."""
    segment = tl.program_id(0).to(tl.int64) * clients + tl.program_id(1)
    bins = tl.arange(0, digits)
    counts = tl.load(found + segment * digits + bins).to(tl.int64)
    want = tl.load(wanted + segment)
    reaching = tl.sum(counts) - tl.cumsum(counts) + counts  # entries of this digit or a larger one
    digit = tl.maximum(tl.sum((reaching >= want).to(tl.int32)) - 1, 0)
    chosen = tl.sum(tl.where(bins == digit, counts, 0))
    above = tl.sum(tl.where(bins > digit, counts, 0))
    tl.store(wanted + segment, want - above)
    tl.store(equal + segment, chosen)
    tl.store(prefix + segment, tl.load(prefix + segment) | (digit << shift))


@triton.jit
def _last(addresses, sizes, clients, prefix, wanted, equal, last, kind: tl.constexpr, block: tl.constexpr):
    """Index of the last entry of just the threshold's magnitude that is kept."""
    segment = tl.program_id(0).to(tl.int64) * clients + tl.program_id(1)
    size, bits = tl.load(sizes + segment), tl.load(prefix + segment)
    left = tl.load(wanted + segment)
    found = size - 1
    if left < tl.load(equal + segment):
        values = address(addresses, segment, kind)
        for start in range(0, size, block):
            index = start + tl.arange(0, block)
            inside = index < size
            loaded = tl.load(values + index, mask=inside, other=0)
            same = (inside & (magnitudes(loaded) == bits)).to(tl.int64)
            order = tl.cumsum(same)
            found = tl.minimum(found, tl.min(tl.where((same > 0) & (order == left), index, size - 1)))
            left -= tl.sum(same)
    tl.store(last + segment, found)
