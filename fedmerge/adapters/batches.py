"""As much at once as the device has memory for; less where it turns out to have less, same result."""

from __future__ import annotations

from collections.abc import Callable, Iterator, Sequence
from typing import TypeVar

import torch

Item = TypeVar("Item")
Result = TypeVar("Result")

SHARE = 0.4
"""Part of the free memory that a batch's inputs may plan with: selection gathers some beside them, and the
allocator leaves gaps."""

LARGEST_BATCH = 1 << 30
"""Bytes of a batch that comes from the host: while one is merged the next is already on its way."""

SMALLEST_TILE = 1 << 12
"""Coordinates; a device that has no room for so few has none at all."""

_SAID = ("out of memory", "ALLOC_FAILED")


def lacks_memory(error: RuntimeError) -> bool:
    """Whether a device had no room: torch's error, or the words of a library below it (cuBLAS, cuSOLVER).

    Example:
        >>> lacks_memory(RuntimeError("CUDA error: CUBLAS_STATUS_ALLOC_FAILED when calling cublasCreate"))
        True
    """
    return isinstance(error, torch.OutOfMemoryError) or any(words in str(error) for words in _SAID)


def in_batches(
    items: Sequence[Item],
    size: Callable[[Item], int],
    budget: float,
    work: Callable[[Sequence[Item]], Sequence[Result]],
    *,
    ahead: bool = False,
) -> Iterator[Result | None]:
    """Work on items batch by batch; where memory runs out, the batch is halved and done again.

    Args:
        items: in their order.
        size: bytes that an item takes while it is worked on.
        budget: bytes that a batch may take; a single item is tried whatever it takes.
        work: gives a result for each item, and leaves nothing behind where it fails.
        ahead: whether to begin the next batch before the results of one are handed out. On a device that
            works by itself both then go on at once.

    Yields:
        The results, in the order of the items; None for one that has no room even alone.

    Example:
        >>> list(in_batches([3, 1, 2], lambda item: item, 4, lambda batch: [sum(batch)] * len(batch)))
        [4, 4, 2]
    """
    place, most = 0, len(items)
    waiting: Sequence[Result | None] = []
    while place < len(items):
        stop, taken = place + 1, size(items[place])
        while stop < min(len(items), place + most) and taken + size(items[stop]) <= budget:
            taken += size(items[stop])
            stop += 1
        results = _tried(work, items[place:stop])
        if results is None and stop - place > 1:
            most = (stop - place) // 2
            continue
        place = stop
        made: Sequence[Result | None] = [None] if results is None else results
        if ahead:
            made, waiting = waiting, made
        yield from made
    yield from waiting


def _tried(
    work: Callable[[Sequence[Item]], Sequence[Result]], batch: Sequence[Item]
) -> Sequence[Result] | None:
    """The results of a batch, None where memory ran out; the error, and what it holds, is let go here."""
    try:
        return work(batch)
    except RuntimeError as error:
        if not lacks_memory(error):
            raise
        return None


def in_tiles(coordinates: int, width: int, work: Callable[[int, int], None], *, divisible: bool) -> None:
    """Work on stretches of coordinates; where memory runs out, on half as many.

    Args:
        coordinates: how many there are.
        width: how many at once, at first.
        work: `(start, stop)`; may be given the same start again after it failed.
        divisible: whether stretches may be halved.

    Raises:
        torch.OutOfMemoryError: there is no room even for the smallest.

    Example:
        >>> in_tiles(5, 3, lambda start, stop: print(start, stop), divisible=True)
        0 3
        3 5
    """
    start, width = 0, max(width, 1)
    while start < coordinates:
        stop = min(start + width, coordinates)
        try:
            work(start, stop)
        except RuntimeError as error:
            if not divisible or stop - start <= SMALLEST_TILE or not lacks_memory(error):
                raise
            width = (stop - start) // 2
            continue
        start = stop


def memory_for(device: torch.device) -> float:
    """Bytes that a batch from the host may take on a device; without limit where tensors lie in memory."""
    if device.type != "cuda":
        return float("inf")
    return min(float(LARGEST_BATCH), SHARE * torch.cuda.mem_get_info(device)[0])
