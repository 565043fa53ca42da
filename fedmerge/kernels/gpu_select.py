"""Triton: which entry of each client's tensor is the k-th largest in magnitude, exactly, for all at once.

A *segment* is one tensor of one client. The bits of a magnitude order as it does; they are searched digit by
digit, 11 bits and then twice 10, with a histogram of every segment. After the first digit the few entries
that share it are gathered, so that the values are read twice, not three times; where too many share it they
are read again instead. No estimate decides anything.
"""

from __future__ import annotations

from dataclasses import dataclass

import torch
import triton
import triton.language as tl
from torch import Tensor

from fedmerge.kernels.gpu_table import BLOCK, Table, address, magnitudes

DIGITS = 2048
LEVELS = ((20, 11), (10, 10), (0, 10))
"""Shift and width of each digit, the leading one first."""

ROOM = 8
"""One entry in eight has room among the gathered."""


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
    tensors, clients = table.addresses.shape
    counts = [max(1, int(density * size)) for size in table.host_sizes]
    wanted = torch.tensor(counts, dtype=torch.int64, device=table.device)[:, None].repeat(1, clients)
    prefix = torch.zeros(tensors, clients, dtype=torch.int32, device=table.device)
    equal = torch.zeros(tensors, clients, dtype=torch.int64, device=table.device)
    source = table
    for level, (shift, width) in enumerate(LEVELS):
        found = torch.zeros(tensors, clients, DIGITS, dtype=torch.int32, device=table.device)
        _histogram[(source.blocks, clients)](
            *source.arguments, clients, prefix, found, shift, width,
            kind=source.kind, digits=DIGITS, block=BLOCK,
        )  # fmt: skip
        _choose[(tensors, clients)](found, wanted, prefix, equal, clients, shift, digits=DIGITS)
        if level == 0:
            source = _gathered(table, prefix, equal) or table
    last = torch.empty(tensors, clients, dtype=torch.int64, device=table.device)
    _last[(tensors, clients)](
        table.addresses, table.sizes, clients, prefix, wanted, equal, last, kind=table.kind, block=BLOCK
    )
    return Thresholds(prefix, last)


def _gathered(table: Table, prefix: Tensor, equal: Tensor) -> Table | None:
    """The entries that share the leading digit, as a table of their own; None where they are too many."""
    rooms = [size // ROOM + BLOCK for size in table.host_sizes]
    tensors, clients = table.addresses.shape
    if bool((equal > torch.tensor(rooms, device=table.device)[:, None]).any()):
        return None
    ends = torch.tensor(rooms, dtype=torch.int64).repeat_interleave(clients).cumsum(0)
    kept = torch.empty(int(ends[-1]), dtype=torch.int32, device=table.device)
    starts = torch.cat([ends.new_zeros(1), ends[:-1]]).reshape(tensors, clients).to(table.device)
    addresses = starts * kept.element_size() + kept.data_ptr()
    cursor = torch.zeros(tensors, clients, dtype=torch.int32, device=table.device)
    _gather[(table.blocks, clients)](
        *table.arguments, clients, prefix, addresses, cursor,
        shift=LEVELS[0][0], kind=table.kind, block=BLOCK,
    )  # fmt: skip
    largest = int(equal.max())
    return Table.of(addresses, equal.clone(), [largest] * tensors, tl.int32, table.device, (kept,))


@triton.jit
def _histogram(
    addresses, sizes, owners, starts, clients, prefix, found, shift, width,
    kind: tl.constexpr, digits: tl.constexpr, block: tl.constexpr,
):  # fmt: skip
    """Count the digit of those entries of a block whose leading bits are the segment's prefix."""
    place, client = tl.program_id(0), tl.program_id(1)
    segment = tl.load(owners + place).to(tl.int64) * clients + client
    index = tl.load(starts + place) + tl.arange(0, block)
    inside = index < tl.load(sizes + segment)
    bits = magnitudes(address(addresses, segment, kind), index, inside, kind)
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
def _gather(
    addresses, sizes, owners, starts, clients, prefix, targets, cursor,
    shift: tl.constexpr, kind: tl.constexpr, block: tl.constexpr,
):  # fmt: skip
    """Write the magnitudes of a block that share the segment's digit to its room, in any order."""
    place, client = tl.program_id(0), tl.program_id(1)
    segment = tl.load(owners + place).to(tl.int64) * clients + client
    index = tl.load(starts + place) + tl.arange(0, block)
    inside = index < tl.load(sizes + segment)
    bits = magnitudes(address(addresses, segment, kind), index, inside, kind)
    chosen = inside & ((bits >> shift) == (tl.load(prefix + segment) >> shift))
    order = tl.cumsum(chosen.to(tl.int32))
    first = tl.atomic_add(cursor + segment, tl.sum(chosen.to(tl.int32)))
    room = tl.load(targets + segment).to(tl.pointer_type(tl.int32))
    tl.store(room + first + order - 1, bits, mask=chosen)


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
            same = (inside & (magnitudes(values, index, inside, kind) == bits)).to(tl.int64)
            order = tl.cumsum(same)
            found = tl.minimum(found, tl.min(tl.where((same > 0) & (order == left), index, size - 1)))
            left -= tl.sum(same)
    tl.store(last + segment, found)
