"""KeepMiddle, DropByRank and the stages that look across clients: exact masks, rows, traps."""

from __future__ import annotations

from collections.abc import Callable

import numpy as np
import pytest
import torch
from hypothesis import given
from hypothesis import strategies as st

from fedmerge.errors import RuleError
from fedmerge.rules import (
    Draw,
    DropByRank,
    ElectChanged,
    ElectLargest,
    KeepConsensus,
    KeepMiddle,
    KeepVarying,
    RescaleUnique,
    Stack,
    parse_rule,
)

from . import oracles_sparse


def stack(*rows: list[float], weights: list[float] | None = None) -> Stack:
    weight = torch.tensor(weights or [1.0] * len(rows), dtype=torch.float64)
    return Stack(torch.tensor(rows), weight[:, None])


def draw(*shape: int, clients: int = 1, offset: int = 0) -> Draw:
    return Draw(0, 1, tuple(f"silo-{client}" for client in range(clients)), "layer.weight", shape, offset)


@given(
    st.lists(st.integers(-4, 4), min_size=1, max_size=40),
    st.floats(0.01, 1),
    st.floats(0, 1, exclude_max=True),
)
def test_keep_middle_is_exact(row: list[int], density: float, share: float) -> None:
    gamma = share * (1 - density)
    kept = KeepMiddle(density, gamma)(stack([float(value) for value in row]), draw(len(row))).values
    wanted = oracles_sparse.keep_middle(np.array([row], dtype=float), density, gamma)
    assert torch.equal(kept.to(torch.float64), torch.from_numpy(wanted))


@pytest.mark.parametrize("size", range(1, 12))
@pytest.mark.parametrize(("density", "gamma"), [(0.9, 0.01), (0.01, 0.5), (0.1, 0.9), (0.05, 0.95)])
def test_a_small_tensor_is_not_wiped_out(size: int, density: float, gamma: float) -> None:
    values = [float(place + 1) for place in range(size)]
    kept = KeepMiddle(density, gamma)(stack(values), draw(size)).values
    assert int((kept != 0).sum()) == max(1, int(density * size))
    if size < 1 / gamma:  # no outliers: the largest stays
        assert kept[0, -1] == size


def test_the_outliers_go_first() -> None:
    values = torch.arange(1.0, 101.0)[torch.randperm(100, generator=torch.Generator().manual_seed(0))]
    kept = KeepMiddle(0.5, 0.1)(Stack(values[None], torch.ones(1, 1, dtype=torch.float64)), draw(100)).values
    assert sorted(kept[kept != 0].tolist()) == list(range(41, 91))


def test_drop_by_rank_ranks_within_rows() -> None:
    values = torch.randn(3, 4 * 6, generator=torch.Generator().manual_seed(0), dtype=torch.float64)
    at = draw(4, 6, clients=3)
    kept = DropByRank(0.5, 0.3)(Stack(values, torch.ones(3, 1, dtype=torch.float64)), at).values
    wanted = oracles_sparse.drop_by_rank(values.numpy(), at.uniform(24).numpy(), 0.5, 0.3, rows=4)
    np.testing.assert_allclose(kept, wanted, rtol=1e-15)
    other = oracles_sparse.drop_by_rank(values.numpy(), at.uniform(24).numpy(), 0.5, 0.3, rows=1)
    assert not np.allclose(kept, other)


def test_axes_after_the_first_belong_to_a_row() -> None:
    values = torch.randn(1, 24, generator=torch.Generator().manual_seed(0))
    given_stack = Stack(values, torch.ones(1, 1, dtype=torch.float64))
    stage = DropByRank(0.5, 0.3)
    assert torch.equal(stage(given_stack, draw(4, 2, 3)).values, stage(given_stack, draw(4, 6)).values)


def test_large_entries_are_kept_more_often_and_the_mean_stays() -> None:
    size, repeats = 5, 20_000
    values = torch.arange(1.0, size + 1).repeat(repeats)[None]
    kept = DropByRank(0.5, 0.4)(
        Stack(values, torch.ones(1, 1, dtype=torch.float64)), draw(repeats, size)
    ).values.reshape(repeats, size)
    shares = (kept != 0).to(torch.float64).mean(dim=0)
    torch.testing.assert_close(shares, torch.tensor([0.1, 0.3, 0.5, 0.7, 0.9]).double(), atol=0.02, rtol=0)
    torch.testing.assert_close(kept.mean(dim=0), torch.arange(1.0, 6.0).double(), atol=0.05, rtol=0.06)


def test_rows_of_one_entry_are_kept_by_the_density() -> None:
    column = Stack(torch.ones(1, 1000), torch.ones(1, 1, dtype=torch.float64))
    plain = DropByRank(0.5, 0.0)(column, draw(1000)).values
    assert torch.equal(DropByRank(0.5, 0.3)(column, draw(1000, 1)).values, plain)


def test_drop_by_rank_says_that_it_needs_the_whole_tensor() -> None:
    with pytest.raises(RuleError, match=r"needs the whole tensor 'layer.weight' of shape \(7, 3\)"):
        DropByRank(0.5)(stack([1.0] * 8), draw(7, 3))
    with pytest.raises(RuleError, match="needs the whole tensor"):
        DropByRank(0.5)(stack([1.0] * 6), draw(4, 3, offset=6))


def test_keep_varying_ignores_clients_of_weight_zero_and_ties_by_index() -> None:
    given_stack = stack([1, 2.0, 3, 0], [1, 4, 5, 0], [9, 0, 0, 9], weights=[1, 1, 0])
    kept = KeepVarying(0.25)(given_stack, draw(4, clients=3)).values
    assert kept.tolist() == [[0, 2, 0, 0], [0, 4, 0, 0], [0, 0, 0, 0]]


def test_keep_varying_keeps_all_where_nothing_varies() -> None:
    alike = stack([0.1, 0.7, 0.3], [0.1, 0.7, 0.3], weights=[0.1, 0.2])
    assert KeepVarying(0.3)(alike, draw(3, clients=2)) is alike


def test_keep_varying_is_exact_far_from_zero() -> None:
    near = torch.full((2, 3), 1e6, dtype=torch.float64)
    near[1, 1] += 1e-6
    kept = KeepVarying(0.4)(Stack(near, torch.ones(2, 1, dtype=torch.float64)), draw(3, clients=2)).values
    assert (kept != 0).tolist() == [[False, True, False]] * 2


def test_consensus_asks_all_where_there_are_fewer_than_asked_for() -> None:
    one = stack([1.0, 0.0, -2.0])
    assert torch.equal(KeepConsensus(clients=2)(one, draw(3)).values, torch.tensor([[1.0, 0.0, -2.0]]))
    absent = stack([1.0, 2.0], [5.0, 5.0], weights=[1, 0])
    assert KeepConsensus(clients=2)(absent, draw(2, clients=2)).values[0].tolist() == [1.0, 2.0]


def test_elect_largest_does_not_see_who_was_outvoted() -> None:
    values = torch.tensor([[5.0], [-1.0], [-2.0]])
    weights = torch.tensor([[0.0], [1.0], [1.0]], dtype=torch.float64)
    elected = ElectLargest()(Stack(values, weights), draw(1, clients=3)).weights
    assert elected[:, 0].tolist() == [0, 0, 1]


@pytest.mark.parametrize(("weights", "wanted"), [([1, 1], 0.0), ([3, 1], 2.0), ([1, 3], -2.0)])
def test_magmax_of_opposite_signs_goes_by_weight(weights: list[float], wanted: float) -> None:
    merged = parse_rule("magmax()")(stack([2.0], [-2.0], weights=weights), draw(1, clients=2))
    assert merged.tolist() == [wanted]


def test_ram_gives_back_what_the_mean_takes() -> None:
    values = stack([1.0, 1.0, 0.0, 4.0], [3.0, 0.0, 0.0, 0.0])
    merged = parse_rule("ram(rate=0.3, limit=0.4)")(values, draw(4, clients=2))
    assert merged.tolist() == pytest.approx([2, 1 + 0.3 * 0.4, 0, 4 * (1 + 0.3 * 0.4)])
    assert parse_rule("ram(rate=0.0)").separable
    assert not parse_rule("ram()").separable


def test_changed_is_more_than_the_threshold() -> None:
    elected = ElectChanged(0.5)(stack([0.5, -0.5, 0.75]), draw(3)).weights
    assert elected.tolist() == [[0, 0, 1]]


def test_whole_shares_change_nothing() -> None:
    given_stack = stack([1.0, -3.0])
    for stage in (KeepMiddle(1.0, 0.0), DropByRank(1.0, 0.0), KeepVarying(1.0), RescaleUnique(rate=0.0)):
        assert stage(given_stack, draw(2)) is given_stack
        assert stage.separable


@pytest.mark.parametrize(
    ("make", "sentence"),
    [
        (lambda: KeepMiddle(0.0), "density=0.0 is out of range"),
        (lambda: KeepMiddle(0.5, 1.0), "gamma=1.0 is out of range"),
        (lambda: KeepMiddle(0.9, 0.2), "more than 1 together"),
        (lambda: KeepMiddle(0.5, scope="model"), "scope='model' is not known"),
        (lambda: DropByRank(0.0), "density=0.0 is out of range"),
        (lambda: DropByRank(0.5, -0.1), "epsilon=-0.1 is out of range"),
        (lambda: DropByRank(0.1, 0.1), "kept with probabilities 0 to 0.2"),
        (lambda: DropByRank(0.95, 0.1), "kept with probabilities 0.85 to 1.05"),
        (lambda: KeepVarying(20), "density=20 is out of range"),
        (lambda: KeepConsensus(clients=0), "clients=0 is out of range: a whole number from 1"),
        (lambda: KeepConsensus(clients=True), "clients=True is out of range"),
        (lambda: KeepConsensus(threshold=-1), "threshold=-1 is out of range"),
        (lambda: ElectChanged(threshold=float("nan")), "threshold=nan is out of range"),
        (lambda: RescaleUnique(rate=-0.1), "rate=-0.1 is out of range"),
        (lambda: RescaleUnique(limit=float("inf")), "limit=inf is out of range"),
        (lambda: RescaleUnique(scope="layer"), "scope='layer' is not known"),
    ],
)
def test_refuses(make: Callable[[], object], sentence: str) -> None:
    with pytest.raises(RuleError, match=sentence):
        make()
