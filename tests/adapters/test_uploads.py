"""The way to a device through buffers in turn, with a device of our own that fetches late."""

from __future__ import annotations

import pytest
import torch
from torch import Tensor

from fedmerge.adapters.batches import SMALLEST_TILE, in_batches, in_tiles
from fedmerge.adapters.uploads import BUFFERS, on_device, starts_of, upload


class LateLane:
    """Copies a buffer only when it is asked for again: whoever overwrites it too early is found out."""

    def __init__(self, room: int) -> None:
        self.buffers = [torch.empty(room, dtype=torch.uint8) for _ in range(BUFFERS)]
        self.under_way: dict[int, tuple[Tensor, Tensor]] = {}

    def stage(self, slot: int, count: int, dtype: torch.dtype) -> Tensor:
        self.arrive(slot)
        return self.buffers[slot][: count * dtype.itemsize].view(dtype)

    def send(self, slot: int, staged: Tensor, target: Tensor) -> None:
        assert slot not in self.under_way
        self.under_way[slot] = (staged, target)

    def arrive(self, slot: int) -> None:
        if slot in self.under_way:
            staged, target = self.under_way.pop(slot)
            target.copy_(staged)


@pytest.mark.parametrize("dtype", [torch.float32, torch.bfloat16])
@pytest.mark.parametrize("room", [4, 32, 4096])
def test_everything_arrives_whatever_the_buffers(dtype, room):
    wide = torch.randn(6, 50, generator=torch.Generator().manual_seed(0))
    rows = [wide[0], wide[1].to(dtype), wide[:, 3], wide[2, :0], wide[3, :1], wide[4, ::7]]
    starts = starts_of(rows, dtype.itemsize)
    arena = torch.full((starts[-1],), torch.nan, dtype=dtype)
    lane = LateLane(room)
    upload(rows, arena, lane, room)
    for slot in range(BUFFERS):
        lane.arrive(slot)
    for row, start in zip(rows, starts, strict=False):
        assert start % (16 // dtype.itemsize) == 0
        assert torch.equal(arena[start : start + len(row)], row.to(dtype))


def test_what_is_there_already_is_not_copied():
    rows = [torch.ones(3), torch.ones(2, dtype=torch.float64), torch.ones(8)[::2]]
    found = on_device(rows, torch.device("cpu"), torch.float32)
    assert found[0].data_ptr() == rows[0].data_ptr()
    assert [row.dtype for row in found] == [torch.float32] * 3
    assert all(row.is_contiguous() for row in found)


def test_tiles_are_halved_where_memory_runs_out():
    done: list[tuple[int, int]] = []

    def work(start: int, stop: int) -> None:
        if stop - start > 10_000:
            raise torch.OutOfMemoryError("no room")
        done.append((start, stop))

    in_tiles(100_000, 60_000, work, divisible=True)
    assert [start for start, _ in done] == [0, *(stop for _, stop in done[:-1])]
    assert done[-1][1] == 100_000
    with pytest.raises(torch.OutOfMemoryError):
        in_tiles(100_000, 100_000, work, divisible=False)


def test_a_device_without_any_room_is_told():
    def work(start: int, stop: int) -> None:
        raise torch.OutOfMemoryError("no room")

    with pytest.raises(torch.OutOfMemoryError):
        in_tiles(SMALLEST_TILE * 8, SMALLEST_TILE * 8, work, divisible=True)


def test_the_next_batch_begins_before_the_results_of_one_are_used():
    begun: list[int] = []

    def work(batch: list[int]) -> list[int]:
        begun.extend(batch)
        return batch

    seen = []
    for result in in_batches([1, 2, 3], lambda item: 1, 1, work, ahead=True):
        seen.append((result, len(begun)))
    assert seen == [(1, 2), (2, 3), (3, 3)]


@pytest.mark.skipif(not torch.cuda.is_available(), reason="no GPU")
def test_a_gpu_gets_what_lay_on_the_host():
    rows = [torch.randn(40_000_000), torch.randn(7), torch.randn(64, 64)[:, 5]]
    found = on_device(rows, torch.device("cuda", 0), torch.float32)
    assert all(torch.equal(one.cpu(), two) for one, two in zip(found, rows, strict=True))
