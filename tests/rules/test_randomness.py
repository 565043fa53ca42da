from __future__ import annotations

import hashlib
import json

import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st

from fedmerge.rules import Draw, DropRandom, Stack
from fedmerge.rules.randomness import stream_key, uniform_stream

WORD = 2**64
seeds = st.integers(-(2**70), 2**70)


def splitmix(start: int, increment: int, index: int) -> float:
    """SplitMix64 in Python's whole numbers."""
    state = (start + (index + 1) * increment) % WORD
    state = ((state ^ (state >> 30)) * 0xBF58476D1CE4E5B9) % WORD
    state = ((state ^ (state >> 27)) * 0x94D049BB133111EB) % WORD
    state ^= state >> 31
    return (state >> 11) / 2**53


def key_by_hand(seed: int, round_number: int, silo: str, tensor: str) -> tuple[int, int]:
    text = json.dumps([seed, round_number, silo, tensor]).encode()
    digest = hashlib.blake2b(text, digest_size=16, person=b"fedmerge").digest()
    return int.from_bytes(digest[:8], "little"), int.from_bytes(digest[8:], "little") | 1


@given(seeds, st.integers(0, 10**6), st.text(max_size=8), st.text(max_size=8), st.integers(0, 2**40))
def test_equals_splitmix64(seed: int, round_number: int, silo: str, tensor: str, offset: int) -> None:
    made = uniform_stream(stream_key(seed, round_number, silo, tensor), offset, 3, "cpu")
    start, increment = key_by_hand(seed, round_number, silo, tensor)
    assert made.tolist() == [splitmix(start, increment, offset + index) for index in range(3)]


def test_golden_numbers() -> None:
    """Pinned, so that a run draws the same masks after an update."""
    draw = Draw(0, 1, ("a", "b"), "layer.weight", (4,))
    assert draw.uniform(2).tolist() == [
        [0.12297643943392567, 0.038339818938856629],
        [0.86322638711912836, 0.12903838238825804],
    ]


@settings(max_examples=30)
@given(st.integers(0, 50), st.integers(0, 50), st.integers(0, 2**33))
def test_chunks_are_parts_of_the_whole(first: int, second: int, offset: int) -> None:
    draw = Draw(3, 1, ("a", "b"), "x", (2**34,), offset)
    parts = [draw.uniform(first), draw.at(first).uniform(second)]
    assert torch.equal(torch.cat(parts, dim=1), draw.uniform(first + second))


def test_every_part_of_the_key_matters() -> None:
    base = Draw(0, 1, ("a",), "x", (64,))
    others = [
        Draw(1, 1, ("a",), "x", (64,)),
        Draw(0, 2, ("a",), "x", (64,)),
        Draw(0, 1, ("b",), "x", (64,)),
        Draw(0, 1, ("a",), "y", (64,)),
        Draw(1, 0, ("a",), "x", (64,)),
    ]
    numbers = [draw.uniform(64) for draw in [base, *others]]
    for left in range(len(numbers)):
        for right in range(left):
            assert not torch.isin(numbers[left], numbers[right]).any()
    assert stream_key(0, 1, "a", "bc") != stream_key(0, 1, "ab", "c")


def test_a_silos_numbers_do_not_depend_on_the_others() -> None:
    together = Draw(0, 1, ("a", "b", "c"), "x", (10,)).uniform(10)
    assert torch.equal(together[1:2], Draw(0, 1, ("b",), "x", (10,)).uniform(10))


def test_is_uniform_and_independent() -> None:
    numbers = Draw(5, 3, tuple("abcdefgh"), "x", (100_000,)).uniform(100_000)
    assert numbers.min() >= 0
    assert numbers.max() < 1
    counts = torch.histc(numbers, bins=100, min=0, max=1)
    chi_squared = ((counts - 8000) ** 2 / 8000).sum()
    assert 50 < chi_squared < 160  # 99 degrees of freedom
    between = torch.corrcoef(numbers) - torch.eye(8)
    along = torch.corrcoef(torch.stack([numbers[:, :-1].flatten(), numbers[:, 1:].flatten()]))[0, 1]
    assert between.abs().max() < 0.015
    assert along.abs() < 0.005


@pytest.mark.skipif(not torch.cuda.is_available(), reason="no GPU")
def test_same_bits_on_a_gpu() -> None:
    draw = Draw(7, 2, ("a", "b"), "x", (10**6,), offset=2**33)
    assert torch.equal(draw.uniform(10**6, "cuda").cpu(), draw.uniform(10**6))


def test_drop_random_is_unbiased_and_keeps_its_share() -> None:
    values = torch.ones(4, 50_000)
    stack = Stack(values, torch.ones(4, 1, dtype=torch.float64))
    dropped = DropRandom(density=0.3)(stack, Draw(0, 0, tuple("abcd"), "x", (50_000,))).values
    assert set(dropped.unique().tolist()) == {0.0, 1 / 0.3}
    assert abs((dropped != 0).double().mean() - 0.3) < 0.004
    assert abs(dropped.mean() - 1) < 0.015
