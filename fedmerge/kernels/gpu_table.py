"""Triton: how kernels reach many tensors without a copy. A table of addresses, and one of blocks.

What a launch needs of the host goes to the device in one copy: a copy costs tens of microseconds however
small it is, and an adapter is merged in less than a millisecond.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from typing import Any

import numpy as np
import torch
import triton
import triton.language as tl
from torch import Tensor

BLOCK = 1024
WARPS = BLOCK // 256
"""Eight values a thread."""

KINDS: dict[torch.dtype, Any] = {
    torch.float32: tl.float32,
    torch.bfloat16: tl.bfloat16,
    torch.float16: tl.float16,
}

_ALIGNED = 16


@dataclass(frozen=True, eq=False)
class Table:
    """Tensors of several clients, cut into blocks that one program each works on.

    Args:
        addresses: int64 `(tensors, clients)`.
        sizes: int64 `(tensors, clients)`.
        owners: the tensor of each block, int32 `(blocks,)`.
        starts: its first coordinate, int64 `(blocks,)`.
        host_addresses: the addresses on the host.
        host_sizes: the sizes on the host.
        dtype: of the values.
        held: what the addresses point into, kept alive.
    """

    addresses: Tensor
    sizes: Tensor
    owners: Tensor
    starts: Tensor
    host_addresses: np.ndarray
    host_sizes: np.ndarray
    dtype: torch.dtype
    held: tuple[Tensor, ...] = ()

    @property
    def kind(self) -> Any:
        """Triton's type of the values."""
        return KINDS[self.dtype]

    @property
    def device(self) -> torch.device:
        """Where all this lies."""
        return self.addresses.device

    @property
    def shape(self) -> tuple[int, int]:
        """Tensors, clients."""
        return len(self.host_sizes), self.host_sizes.shape[1]

    @property
    def blocks(self) -> int:
        """Number of blocks."""
        return len(self.owners)

    @property
    def arguments(self) -> tuple[Tensor, Tensor, Tensor, Tensor]:
        """What every kernel over blocks is given first."""
        return self.addresses, self.sizes, self.owners, self.starts


def table_of(
    values: Sequence[Sequence[Tensor]], beside: Sequence[np.ndarray] = ()
) -> tuple[Table, list[Tensor]]:
    """The table of flat, contiguous tensors of one dtype on one device; `(tensors, clients)`, none empty.

    Args:
        values: for each tensor, each client's.
        beside: arrays that are to go to the device in the same copy.

    Returns:
        The table, and the arrays on the device.
    """
    first, clients = values[0][0], len(values[0])
    pointers = (tensor.data_ptr() for row in values for tensor in row)
    addresses = np.fromiter(pointers, np.int64, len(values) * clients).reshape(-1, clients)
    sizes = np.fromiter((row[0].numel() for row in values), np.int64, len(values))
    return laid_out(addresses, sizes[:, None].repeat(clients, 1), first.dtype, first.device, beside)


def laid_out(
    addresses: np.ndarray,
    sizes: np.ndarray,
    dtype: torch.dtype,
    device: torch.device,
    beside: Sequence[np.ndarray] = (),
    held: tuple[Tensor, ...] = (),
) -> tuple[Table, list[Tensor]]:
    """Cut tensors into blocks, as many as the longest of a tensor's clients needs."""
    counts = -(-sizes.max(axis=1) // BLOCK)
    owners = np.repeat(np.arange(len(counts), dtype=np.int32), counts)
    firsts = np.cumsum(counts) - counts
    starts = (np.arange(len(owners)) - np.repeat(firsts, counts)) * BLOCK
    there = on_device([addresses, sizes, owners, starts, *beside], device)
    return Table(there[0], there[1], there[2], there[3], addresses, sizes, dtype, held), there[4:]


def on_device(arrays: Sequence[np.ndarray], device: torch.device) -> list[Tensor]:
    """Arrays as tensors on a device, by one copy."""
    flat = [np.ascontiguousarray(array) for array in arrays]
    if device.type == "cpu":
        return [torch.from_numpy(array) for array in flat]
    ends = np.cumsum([-(-array.nbytes // _ALIGNED) * _ALIGNED for array in flat]).tolist()
    spans = [slice(start, start + array.nbytes) for array, start in zip(flat, [0, *ends], strict=False)]
    buffer = torch.empty(ends[-1], dtype=torch.uint8, pin_memory=True)
    into = buffer.numpy()
    for array, span in zip(flat, spans, strict=True):
        into[span] = array.reshape(-1).view(np.uint8)
    there = buffer.to(device, non_blocking=True)
    return [
        there[span].view(torch.from_numpy(array).dtype).reshape(array.shape)
        for array, span in zip(flat, spans, strict=True)
    ]


@triton.jit
def address(addresses, segment, kind: tl.constexpr):
    """The pointer to a segment's values."""
    return tl.load(addresses + segment).to(tl.pointer_type(kind))


@triton.jit
def magnitudes(values):
    """The bits of values without their sign, as of float32."""
    return values.to(tl.float32).to(tl.int32, bitcast=True) & 0x7FFFFFFF
