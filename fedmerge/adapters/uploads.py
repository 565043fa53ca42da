"""From the host's memory to a GPU's: through pinned buffers, on a stream of its own, while kernels run.

A copy from pageable memory holds the host until it is done, and each costs tens of microseconds however small
it is: an adapter is hundreds of tensors, and there are many adapters. So rows are packed into pinned buffers,
by several threads, and a full one is fetched by the GPU while the next is filled.
"""

from __future__ import annotations

from collections.abc import Iterator, Sequence
from concurrent.futures import ThreadPoolExecutor
from functools import cache, lru_cache
from itertools import accumulate
from threading import Lock
from typing import Protocol

import torch
from torch import Tensor

BUFFER_BYTES = 64 << 20
"""Of each pinned buffer: the host fills it in some ms, the bus empties it in 1 to 3."""

BUFFERS = 3

PACKERS = 4
"""Threads that fill a buffer: one core reads memory at a fraction of the bus's speed."""

_ALIGNED = 16
"""Bytes; each row begins at a multiple, as if it had memory of its own."""

Piece = tuple[int, Tensor]
"""Where in a buffer a stretch of a row goes."""


class Lane(Protocol):
    """A way to a device: pieces go in order, and at some time they are there."""

    def stage(self, slot: int, count: int, dtype: torch.dtype) -> Tensor:
        """A pinned buffer of `count` values that nothing on its way uses any more."""
        ...

    def send(self, slot: int, staged: Tensor, target: Tensor) -> None:
        """Let a buffer's values be copied to the device."""
        ...


def starts_of(rows: Sequence[Tensor], itemsize: int) -> list[int]:
    """Where each row begins in one long tensor of values of `itemsize` bytes; last, where all end.

    Example:
        >>> starts_of([torch.zeros(3), torch.zeros(5), torch.zeros(1)], itemsize=4)
        [0, 4, 12, 16]
    """
    step = max(1, _ALIGNED // itemsize)
    return list(accumulate((-(-len(row) // step) * step for row in rows), initial=0))


def upload(rows: Sequence[Tensor], arena: Tensor, lane: Lane, room: int) -> None:
    """Copy rows to a device, through the lane's buffers in turn.

    Args:
        rows: flat, on the host, of any dtype and stride.
        arena: on the device, as long as `starts_of` the rows ends; its dtype is what is sent.
        lane: the way there.
        room: bytes of a buffer.
    """
    width = max(1, room // arena.element_size())
    for turn, pieces in enumerate(_windows(rows, starts_of(rows, arena.element_size()), width)):
        first = turn * width
        target = arena[first : first + width]
        staged = lane.stage(turn % BUFFERS, len(target), arena.dtype)
        _pack(pieces, staged)
        lane.send(turn % BUFFERS, staged, target)


def _windows(rows: Sequence[Tensor], starts: Sequence[int], width: int) -> Iterator[list[Piece]]:
    """The stretches of rows that each window of `width` values is to hold."""
    pieces: list[Piece] = []
    window = 0
    for row, start in zip(rows, starts[:-1], strict=True):
        done = 0
        while done < len(row):
            while start + done >= (window + 1) * width:
                yield pieces
                pieces, window = [], window + 1
            place = start + done - window * width
            taken = min(len(row) - done, width - place)
            pieces.append((place, row[done : done + taken]))
            done += taken
    while window * width < starts[-1]:
        yield pieces
        pieces, window = [], window + 1


def _pack(pieces: Sequence[Piece], staged: Tensor) -> None:
    """Copy stretches of rows to their places, the work shared out by length."""
    if len(pieces) < PACKERS:
        _copy(pieces, staged)
        return
    ends = list(accumulate(len(row) for _, row in pieces))
    shares: list[list[Piece]] = [[] for _ in range(PACKERS)]
    for piece, end in zip(pieces, ends, strict=True):
        shares[min((end - 1) * PACKERS // ends[-1], PACKERS - 1)].append(piece)
    list(_packers().map(lambda share: _copy(share, staged), shares))


def _copy(pieces: Sequence[Piece], staged: Tensor) -> None:
    for place, row in pieces:
        staged[place : place + len(row)].copy_(row)


@cache
def _packers() -> ThreadPoolExecutor:
    return ThreadPoolExecutor(PACKERS, thread_name_prefix="fedmerge-upload")


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
    leaving = [rows[place] for place in away]
    starts = starts_of(leaving, dtype.itemsize)
    with torch.cuda.stream(lane.stream):
        arena = torch.empty(starts[-1], dtype=dtype, device=device)
    with lane.lock:
        upload(leaving, arena, lane, BUFFER_BYTES)
    current = torch.cuda.current_stream(device)
    current.wait_stream(lane.stream)
    arena.record_stream(current)  # its memory is not given away before this stream has read it
    targets = [arena[start : start + len(row)] for start, row in zip(starts, leaving, strict=False)]
    arrived = dict(zip(away, targets, strict=True))
    return [
        arrived[place] if place in arrived else row.to(device, dtype).contiguous()
        for place, row in enumerate(rows)
    ]
