"""From the host's memory to a GPU's: through pinned buffers, on a stream of its own, while kernels run.

A copy from pageable memory holds the host until it is done. Here the host fills one pinned buffer while the
GPU fetches the other.
"""

from __future__ import annotations

from collections.abc import Sequence
from functools import lru_cache
from threading import Lock
from typing import Protocol

import torch
from torch import Tensor

BUFFER_BYTES = 64 << 20
"""Of each pinned buffer: the host fills it in some ms, the bus empties it in 1 to 3."""

BUFFERS = 3


class Lane(Protocol):
    """A way to a device: pieces go in order, and at some time they are there."""

    def stage(self, slot: int, count: int, dtype: torch.dtype) -> Tensor:
        """A pinned buffer of `count` values that no piece on its way uses any more."""
        ...

    def send(self, slot: int, staged: Tensor, target: Tensor) -> None:
        """Let a buffer's values be copied to the device."""
        ...


def upload(rows: Sequence[Tensor], targets: Sequence[Tensor], lane: Lane, room: int) -> None:
    """Copy rows to a device, through the lane's buffers in turn.

    Args:
        rows: flat, on the host, of any dtype and stride.
        targets: of the same sizes, contiguous, on the device; their dtype is what is sent.
        lane: the way there.
        room: bytes of a buffer.
    """
    slot = 0
    for row, target in zip(rows, targets, strict=True):
        width = max(1, room // target.element_size())
        for start in range(0, len(row), width):
            piece = row[start : start + width]
            staged = lane.stage(slot, len(piece), target.dtype)
            staged.copy_(piece)
            lane.send(slot, staged, target[start : start + width])
            slot = (slot + 1) % BUFFERS


class CudaLane:
    """Pinned buffers and a stream of one GPU; `on_device` keeps one for each."""

    def __init__(self, device: torch.device) -> None:
        self.stream = torch.cuda.Stream(device)  # type: ignore[no-untyped-call]
        self.buffers = [torch.empty(BUFFER_BYTES, dtype=torch.uint8, pin_memory=True) for _ in range(BUFFERS)]
        self.lock = Lock()
        self.fetched = [torch.cuda.Event() for _ in range(BUFFERS)]  # type: ignore[no-untyped-call]

    def stage(self, slot: int, count: int, dtype: torch.dtype) -> Tensor:
        """See `Lane`."""
        self.fetched[slot].synchronize()
        return self.buffers[slot][: count * dtype.itemsize].view(dtype)

    def send(self, slot: int, staged: Tensor, target: Tensor) -> None:
        """See `Lane`."""
        with torch.cuda.stream(self.stream):
            target.copy_(staged, non_blocking=True)
            self.fetched[slot].record(self.stream)


@lru_cache(maxsize=16)
def cuda_lane(device: torch.device) -> CudaLane | None:
    """The lane to a GPU; None where the host has no memory that could be pinned."""
    try:
        return CudaLane(device)
    except RuntimeError:
        return None


def on_device(rows: Sequence[Tensor], device: torch.device, dtype: torch.dtype) -> list[Tensor]:
    """Rows as contiguous tensors of a dtype on a device; what is that already is not copied.

    Args:
        rows: flat, on the host or on a device.
        device: where they are wanted.
        dtype: as what.

    Returns:
        For each row a tensor that work on the device's current stream may read.
    """
    away = [place for place, row in enumerate(rows) if row.device.type == "cpu" and device.type == "cuda"]
    lane = cuda_lane(device) if away else None
    if lane is None:
        return [row.to(device, dtype).contiguous() for row in rows]
    with torch.cuda.stream(lane.stream):
        targets = [torch.empty(len(rows[place]), dtype=dtype, device=device) for place in away]
    with lane.lock:
        upload([rows[place] for place in away], targets, lane, BUFFER_BYTES)
    current = torch.cuda.current_stream(device)
    current.wait_stream(lane.stream)
    for target in targets:
        target.record_stream(current)  # its memory is not given away before this stream has read it
    arrived = dict(zip(away, targets, strict=True))
    return [
        arrived[place] if place in arrived else row.to(device, dtype).contiguous()
        for place, row in enumerate(rows)
    ]
