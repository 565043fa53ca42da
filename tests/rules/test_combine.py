from __future__ import annotations

import numpy as np
import pytest
import torch
from hypothesis import given
from hypothesis import strategies as st

from fedmerge.errors import RuleError
from fedmerge.rules import Draw, Mean, Median, Scale, Stack, Total, TrimmedMean

DRAW = Draw(0, 0, ("a",), "x", (1,))


def column(stage: Mean | Total | Median | TrimmedMean, values: list[float], weights: list[float]) -> float:
    weight = torch.tensor(weights, dtype=torch.float64)[:, None]
    return float(stage(Stack(torch.tensor(values)[:, None], weight), DRAW).values.squeeze())


@pytest.mark.parametrize("stage", [Mean(), Total(), Median(), TrimmedMean(0.1), TrimmedMean(0)])
def test_nothing_over_nothing_is_zero(stage: Mean | Total | Median | TrimmedMean) -> None:
    assert column(stage, [3.0, 4.0], [0.0, 0.0]) == 0


def test_mean_is_rounded_once() -> None:
    """In float32 the ones would be lost next to 2**24, one after the other."""
    assert column(Mean(), [2.0**24, 1.0, 1.0, 1.0], [1.0] * 4) == (2**24 + 3) / 4


def test_total_counts_those_who_count() -> None:
    assert column(Total(), [1.0, 2.0, 9.0], [5.0, 5.0, 0.0]) == 3
    edited = Stack(
        torch.tensor([[1.0, 1.0], [2.0, 2.0]]), torch.tensor([[1.0, 0], [1, 1]], dtype=torch.float64)
    )
    assert Total()(edited, DRAW).values.tolist() == [[3, 2]]


@given(st.lists(st.integers(-50, 50).map(float), min_size=1, max_size=9))
def test_median_of_equal_weights_is_numpys(values: list[float]) -> None:
    assert column(Median(), values, [0.1] * len(values)) == np.median(values)


@pytest.mark.parametrize(
    ("weights", "median"),
    [
        ([1, 1, 1], 2),
        ([2, 1, 1], 1.5),
        ([3, 1, 1], 1),
        ([0.1, 0.2, 0.3], 6),
        ([1, 0, 1], 5.5),
        ([0, 0, 7], 10),
    ],
)
def test_weighted_median(weights: list[float], median: float) -> None:
    """0.1 + 0.2 is not 0.3: the tie is found nevertheless."""
    assert column(Median(), [1.0, 2.0, 10.0], weights) == median


@pytest.mark.parametrize(
    ("trim", "weights", "mean"),
    [
        (0.25, [1, 1, 1, 1], 2.5),
        (0.25, [2, 2, 2, 2], 2.5),
        (0.125, [1, 1, 1, 1], (0.5 * 1 + 2 + 3 + 0.5 * 100) / 3),
        (0.25, [2, 1, 1, 0], (1 + 2) / 2),
        (0.4, [1, 1, 1, 1], 2.5),
    ],
)
def test_trimmed_mean(trim: float, weights: list[float], mean: float) -> None:
    assert column(TrimmedMean(trim), [1.0, 2.0, 3.0, 100.0], weights) == pytest.approx(mean, rel=1e-15)


@pytest.mark.parametrize("clients", [10, 20, 30, 70])
@pytest.mark.parametrize("trim", [0.1, 0.2, 0.3, 0.4])
def test_no_trace_of_what_is_trimmed(clients: int, trim: float) -> None:
    """Where the cut falls between clients, rounding must not let a part of 1e-17 of 1e30 in."""
    outliers = round(trim * clients)
    values = [1e30] * outliers + [1.0] * (clients - 2 * outliers) + [-1e30] * outliers
    assert column(TrimmedMean(trim), values, [0.3] * clients) == pytest.approx(1, rel=1e-12)


@pytest.mark.parametrize("trim", [-0.1, 0.5, 1, float("nan"), "0.1", False])
def test_trim_is_below_one_half(trim: object) -> None:
    with pytest.raises(RuleError, match="trimmed_mean: trim="):
        TrimmedMean(trim)  # type: ignore[arg-type]


@pytest.mark.parametrize("factor", [float("nan"), float("inf"), "1", True, None])
def test_scale_is_finite(factor: object) -> None:
    with pytest.raises(RuleError, match="scale: factor="):
        Scale(factor)  # type: ignore[arg-type]
