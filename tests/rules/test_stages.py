from __future__ import annotations

import numpy as np
import pytest
import torch
from hypothesis import given
from hypothesis import strategies as st

from fedmerge.errors import RuleError
from fedmerge.rules import Draw, DropRandom, ElectSign, EqualWeights, KeepLargest, Stack, Stage
from fedmerge.rules.stages import largest

from . import oracles

DRAW = Draw(0, 0, ("a", "b"), "x", (4,))


def stack(*rows: list[float], weights: list[float] | None = None) -> Stack:
    weight = torch.tensor(weights or [1.0] * len(rows), dtype=torch.float64)
    return Stack(torch.tensor(rows), weight[:, None])


magnitudes = st.sampled_from([0.0, -0.0, 1.0, -1.0, 1e-45, -1e-45, 3e38]) | st.floats(
    width=16, allow_nan=False, allow_infinity=False
)


@given(st.lists(magnitudes, min_size=1, max_size=40), st.floats(0.01, 1.0), st.sampled_from([0, 1]))
def test_keep_largest_is_exact(row: list[float], density: float, minimum: int) -> None:
    kept = KeepLargest(density, minimum=minimum)(stack(row), DRAW).values
    wanted = oracles.keep_largest(np.array([row], dtype=np.float32).astype(np.float64), density, minimum)
    assert torch.equal(kept.to(torch.float64), torch.from_numpy(wanted))


@pytest.mark.parametrize("dtype", [torch.float64, torch.float32, torch.float16, torch.bfloat16])
@pytest.mark.parametrize("count", [0, 1, 2, 499, 999, 1000])
def test_largest_marks_exactly_so_many(dtype: torch.dtype, count: int) -> None:
    values = torch.randn(1000, generator=torch.Generator().manual_seed(count)).to(dtype)
    mask = largest(values, count)
    order = np.argsort(-values.abs().to(torch.float64).numpy(), kind="stable")
    assert mask.nonzero().squeeze(1).tolist() == sorted(order[:count].tolist())


def test_of_equal_magnitudes_the_lowest_indices_stay() -> None:
    assert largest(torch.tensor([1.0, -2.0, 2.0, 2.0, -2.0, 5.0]), 3).tolist() == [
        False, True, True, False, False, True,
    ]  # fmt: skip


def test_a_small_tensor_is_never_wiped_out() -> None:
    assert KeepLargest(density=0.01)(stack([1.0, -3.0]), DRAW).values.tolist() == [[0, -3]]
    assert KeepLargest(density=0.01, minimum=0)(stack([1.0, -3.0]), DRAW).values.tolist() == [[0, 0]]


def test_density_one_costs_nothing() -> None:
    given_stack = stack([1.0, -3.0])
    assert KeepLargest(density=1)(given_stack, DRAW) is given_stack
    assert DropRandom(density=1)(given_stack, DRAW) is given_stack
    assert KeepLargest(density=1.0).separable
    assert not KeepLargest(density=0.5).separable


def test_election() -> None:
    given_stack = stack([1.0, -2, 3, 0], [2, 2, -1, 0], [-4, -1, 0, 1], weights=[3.0, 1.0, 1.0])
    elected = ElectSign()(given_stack, DRAW)
    assert elected.values is given_stack.values
    assert elected.weights.tolist() == [[3, 3, 3, 0], [1, 0, 0, 0], [0, 1, 0, 1]]


def test_a_drawn_vote_elects_nobody() -> None:
    elected = ElectSign()(stack([1.0, 2.0], [-2.0, 2.0], weights=[2.0, 1.0]), DRAW)
    assert elected.weights.tolist() == [[0, 2], [0, 1]]


def test_an_election_after_an_election_counts_those_left() -> None:
    once = ElectSign()(stack([1.0], [2.0], [-1.0]), DRAW)
    assert ElectSign()(once, DRAW).weights.tolist() == once.weights.tolist() == [[1], [1], [0]]


def test_equal_weights() -> None:
    assert EqualWeights()(stack([1.0], [2.0], weights=[7.0, 0.0]), DRAW).weights.tolist() == [[1], [0]]


@pytest.mark.parametrize("density", [0, -0.1, 1.5, 20, float("nan"), True, "0.2", None])
@pytest.mark.parametrize("stage", [KeepLargest, DropRandom])
def test_density_is_a_share(stage: type[KeepLargest] | type[DropRandom], density: object) -> None:
    with pytest.raises(RuleError, match=r"(keep_largest|drop_random): density="):
        stage(density)  # type: ignore[arg-type]


def test_scope_and_minimum_are_checked() -> None:
    with pytest.raises(
        RuleError, match="keep_largest: scope='model' is not known; it is one of 'tensor', 'adapter'"
    ):
        KeepLargest(0.5, scope="model")
    with pytest.raises(RuleError, match="minimum=2 is not known"):
        KeepLargest(0.5, minimum=2)


@pytest.mark.parametrize(
    ("stage", "text"),
    [
        (KeepLargest(0.2), "keep_largest(density=0.2)"),
        (KeepLargest(0.2, "adapter", 0), "keep_largest(density=0.2, scope='adapter', minimum=0)"),
        (DropRandom(0.5), "drop_random(density=0.5)"),
        (ElectSign(), "elect_sign()"),
        (EqualWeights(), "equal_weights()"),
    ],
)
def test_text(stage: Stage, text: str) -> None:
    assert str(stage) == text
