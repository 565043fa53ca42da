"""Triton: how kernels reach many tensors without a copy. A table of addresses, and one of blocks."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from typing import Any

import torch
import triton
import triton.language as tl
from torch import Tensor

BLOCK = 1024

KINDS: dict[torch.dtype, Any] = {
    torch.float32: tl.float32,
    torch.bfloat16: tl.bfloat16,
    torch.float16: tl.float16,
}


@dataclass(frozen=True, eq=False)
class Table:
    """Tensors of several clients, cut into blocks that one program each works on.

    Args:
        addresses: int64 `(tensors, clients)`.
        sizes: int64 `(tensors, clients)`.
        owners: the tensor of each block, int32 `(blocks,)`.
        starts: its first coordinate, int64 `(blocks,)`.
        host_sizes: coordinates of each tensor, at most.
        kind: Triton's type of the values.
        device: where all this lies.
        held: what the addresses point into, kept alive.
    """

    addresses: Tensor
    sizes: Tensor
    owners: Tensor
    starts: Tensor
    host_sizes: Sequence[int]
    kind: Any
    device: torch.device
    held: tuple[Tensor, ...] = ()

    @classmethod
    def of(
        cls,
        addresses: Tensor,
        sizes: Tensor,
        host_sizes: Sequence[int],
        kind: Any,
        device: torch.device,
        held: tuple[Tensor, ...] = (),
    ) -> Table:
        """Cut the tensors into blocks."""
        counts = torch.tensor([-(-size // BLOCK) for size in host_sizes])
        owners = torch.arange(len(counts), dtype=torch.int32).repeat_interleave(counts)
        firsts = torch.cat([counts.new_zeros(1), counts.cumsum(0)[:-1]])
        starts = (torch.arange(len(owners)) - firsts.repeat_interleave(counts)) * BLOCK
        return cls(
            addresses,
            sizes.contiguous(),
            owners.to(device),
            starts.to(device),
            host_sizes,
            kind,
            device,
            held,
        )

    @property
    def blocks(self) -> int:
        """Number of blocks."""
        return len(self.owners)

    @property
    def arguments(self) -> tuple[Tensor, Tensor, Tensor, Tensor]:
        """What every kernel over blocks is given first."""
        return self.addresses, self.sizes, self.owners, self.starts


def table_of(values: Sequence[Sequence[Tensor]]) -> Table:
    """The table of flat, contiguous tensors of one dtype on one device; `(tensors, clients)`, none empty."""
    device, clients = values[0][0].device, len(values[0])
    sizes = [row[0].numel() for row in values]
    addresses = torch.tensor([[tensor.data_ptr() for tensor in row] for row in values], device=device)
    per_client = torch.tensor(sizes, device=device)[:, None].repeat(1, clients)
    return Table.of(addresses, per_client, sizes, KINDS[values[0][0].dtype], device)


@triton.jit
def address(addresses, segment, kind: tl.constexpr):
    """The pointer to a segment's values."""
    return tl.load(addresses + segment).to(tl.pointer_type(kind))


@triton.jit
def magnitudes(values, index, inside, kind: tl.constexpr):
    """The bits of values without their sign, as of float32; what was gathered is already that."""
    loaded = tl.load(values + index, mask=inside, other=0)
    if kind == tl.int32:
        return loaded
    return loaded.to(tl.float32).to(tl.int32, bitcast=True) & 0x7FFFFFFF
