"""The presets against the package that they are named after, and how they differ from our own rules.

PEFT is installed and compared bit for bit. mergekit and the authors' code are not: their presets are checked
against oracles written from their definitions (table.py).
"""

from __future__ import annotations

from collections.abc import Callable

import pytest
import torch
from torch import Tensor

from fedmerge.errors import RuleError
from fedmerge.rules import Draw, KeepLargest, Stack, chain, dare, dare_ties, parse_rule, task_arithmetic, ties
from fedmerge.rules.presets import (
    PRESETS,
    DropByRankKeepNorm,
    DropInPlainPrecision,
    ElectInPlainPrecision,
    KeepThreshold,
    KeepVaryingOfNonzero,
    Knobs,
    SumInPlainPrecision,
    preset,
)

from .table import Case, case

peft = pytest.importorskip("peft.utils.merge_utils", reason="PEFT is not installed")

SHAPE = (16, 37)
WEIGHTS = {
    "equal": [1.0, 1.0, 1.0, 1.0],
    "shares": [0.4, 0.3, 0.2, 0.1],
    "examples": [1300.0, 17.0, 250.0, 999.0],
    "one client": [0.7],
}


def deltas(clients: int, dtype: torch.dtype = torch.float32) -> Case:
    """Of distinct magnitudes: where they are equal, `topk` keeps any."""
    values = torch.randn(clients, SHAPE[0] * SHAPE[1], generator=torch.Generator().manual_seed(clients))
    return case(values.to(dtype))


def compare(
    rule: str, theirs: Callable[..., Tensor], weights: list[float], density: dict[str, float]
) -> None:
    ours = deltas(len(weights))
    given = Case(ours.values, torch.tensor(weights, dtype=torch.float64)[:, None], ours.silos)
    wanted = theirs([row.reshape(SHAPE) for row in ours.values], torch.tensor(weights), **density)
    assert torch.equal(given.merge(parse_rule(rule)).reshape(SHAPE), wanted)


@pytest.fixture
def our_masks(monkeypatch: pytest.MonkeyPatch) -> Callable[[int], None]:
    """Give PEFT the masks that our generator draws."""

    def inject(clients: int) -> None:
        numbers = iter(deltas(clients).draw.uniform(SHAPE[0] * SHAPE[1]))
        monkeypatch.setattr(
            torch,
            "bernoulli",
            lambda probability: (next(numbers).reshape(SHAPE) < probability).to(probability.dtype),
        )

    return inject


@pytest.mark.parametrize("weights", WEIGHTS.values(), ids=WEIGHTS)
def test_task_arithmetic_is_pefts(weights: list[float]) -> None:
    compare("task_arithmetic(like='peft')", peft.task_arithmetic, weights, {})


@pytest.mark.parametrize("density", [0.1, 0.2, 0.5, 0.9])
@pytest.mark.parametrize("weights", WEIGHTS.values(), ids=WEIGHTS)
def test_ties_is_pefts(weights: list[float], density: float) -> None:
    compare(f"ties(density={density}, like='peft')", peft.ties, weights, {"density": density})


@pytest.mark.parametrize("density", [0.1, 0.5])
@pytest.mark.parametrize("weights", WEIGHTS.values(), ids=WEIGHTS)
def test_magnitude_prune_is_a_chain_of_ours(weights: list[float], density: float) -> None:
    stages = chain(KeepLargest(density, minimum=0), SumInPlainPrecision("one"))
    ours = deltas(len(weights))
    given = Case(ours.values, torch.tensor(weights, dtype=torch.float64)[:, None], ours.silos)
    wanted = peft.magnitude_prune(list(ours.values), torch.tensor(weights), density)
    assert torch.equal(given.merge(stages), wanted)


# 0.5 and a density that no float holds exactly
@pytest.mark.parametrize("density", [0.5, 0.3])
@pytest.mark.parametrize("weights", WEIGHTS.values(), ids=WEIGHTS)
def test_dare_is_pefts_given_the_same_masks(
    weights: list[float], density: float, our_masks: Callable[[int], None]
) -> None:
    our_masks(len(weights))
    compare(f"dare(density={density}, like='peft')", peft.dare_linear, weights, {"density": density})


@pytest.mark.parametrize("density", [0.5, 0.3])
@pytest.mark.parametrize("weights", WEIGHTS.values(), ids=WEIGHTS)
def test_dare_ties_is_pefts_given_the_same_masks(
    weights: list[float], density: float, our_masks: Callable[[int], None]
) -> None:
    our_masks(len(weights))
    compare(f"dare_ties(density={density}, like='peft')", peft.dare_ties, weights, {"density": density})


def test_ties_in_bfloat16_is_pefts_rounded() -> None:
    values = (
        torch.randperm(256, generator=torch.Generator().manual_seed(0))[:200].reshape(2, 100).bfloat16() / 256
    )
    given = case(values, [0.4, 0.6])
    wanted = peft.ties(list(values), torch.tensor([0.4, 0.6]), 0.3)
    assert torch.equal(given.merge(ties(0.3, like="peft")), wanted.to(torch.bfloat16))


def test_scale_multiplies_what_the_preset_gives() -> None:
    given = deltas(3)
    assert torch.equal(
        given.merge(ties(0.5, scale=0.5, like="peft")), 0.5 * given.merge(ties(0.5, like="peft"))
    )


class TestKnownDifferences:
    """Same name, different mathematics: each line is why a preset exists."""

    def test_weights_that_sum_to_one_shrink_pefts_by_their_number(self) -> None:
        ours = deltas(4)
        shares = Case(ours.values, torch.full((4, 1), 0.25, dtype=torch.float64), ours.silos)
        for peer, own in [(ties(like="peft"), ties()), (dare_ties(like="peft"), dare_ties())]:
            assert torch.allclose(shares.merge(peer) * 4, shares.merge(own), rtol=1e-5, atol=1e-6)

    def test_peft_and_mergekit_differ_for_unequal_weights(self) -> None:
        ours = deltas(4)
        given = Case(ours.values, torch.tensor(WEIGHTS["shares"], dtype=torch.float64)[:, None], ours.silos)
        theirs, others = given.merge(ties(like="peft")), given.merge(ties(like="mergekit"))
        assert (theirs - others).norm() / others.norm() > 0.6

    def test_peft_wipes_out_a_small_tensor(self) -> None:
        given = case(torch.tensor([[3.0, 1.0, 2.0]]))
        assert (
            given.merge(ties(0.2, like="peft")).tolist()
            == [0, 0, 0]
            == peft.ties(list(given.values), torch.ones(1), 0.2).tolist()
        )
        assert given.merge(ties(0.2)).tolist() == [3, 0, 0]

    def test_the_paper_keeps_one_more_and_all_that_equal_it(self) -> None:
        given = case(torch.tensor([[5.0, 4.0, 3.0, 3.0, 1.0]]))
        assert given.merge(ties(0.2, like="paper")).tolist() == [5, 4, 0, 0, 0]
        assert given.merge(ties(0.4, like="paper")).tolist() == [5, 4, 3, 3, 0]
        assert given.merge(ties(0.4)).tolist() == [5, 4, 0, 0, 0]

    def test_a_drawn_vote(self) -> None:
        given = case(torch.tensor([[2.0, -1.0, -1.0], [-2.0, -1.0, -1.0]]))
        assert given.merge(ties(1.0)).tolist() == [0, -1, -1]
        assert given.merge(ties(1.0, like="peft")).tolist() == [2, -1, -1]
        assert given.merge(ties(1.0, like="mergekit")).tolist() == [2, -1, -1]
        assert given.merge(ties(1.0, like="paper")).tolist() == [-2, -1, -1]

    def test_peft_lets_weights_into_the_sum_but_not_into_the_vote(self) -> None:
        given = case(torch.tensor([[-1.0], [2.0]]), [10.0, 1.0])
        assert given.merge(ties(1.0)).tolist() == [-1]
        assert given.merge(ties(1.0, like="peft")).tolist() == [2]

    def test_peft_counts_a_client_of_weight_zero(self) -> None:
        values = torch.tensor([[1.0, 0.1], [3.0, 0.1]])
        assert peft.ties(list(values), torch.tensor([1.0, 0.0]), 0.5).tolist() == [0.5, 0]
        assert case(values, [1.0, 0.0]).merge(ties(0.5, like="peft")).tolist() == [1, 0]

    def test_task_arithmetic_is_a_sum_of_shares_elsewhere(self) -> None:
        given = case(torch.tensor([[1.0], [3.0]]), [0.5, 0.5])
        assert given.merge(task_arithmetic()).tolist() == [4]
        assert given.merge(task_arithmetic(like="peft")).tolist() == [2]
        assert given.merge(task_arithmetic(like="paper")).tolist() == [4]

    def test_mergekit_keeps_the_l1_norm(self) -> None:
        given = deltas(1)
        kept = given.merge(dare(0.3, like="mergekit"))
        assert torch.isclose(kept.abs().sum(), given.values.abs().sum(), rtol=1e-5)
        assert not torch.isclose(given.merge(dare(0.3)).abs().sum(), given.values.abs().sum(), rtol=1e-5)

    def test_a_tensor_that_is_dropped_whole_stays_zero(self) -> None:
        silos, values = ("a", "b"), torch.ones(2, 1)
        draw = Draw(0, 0, silos, "x", (1,))
        stack = Stack(values, torch.ones(2, 1, dtype=torch.float64))
        expected = float((draw.uniform(1) < 0.001).sum())
        assert dare(0.001, like="mergekit")(stack, draw).tolist() == [expected] == [0]


@pytest.mark.parametrize(("rule", "like"), PRESETS)
def test_presets_are_known_by_name(rule: str, like: str) -> None:
    assert preset(rule, like, Knobs(0.5))


def test_unknown_presets() -> None:
    with pytest.raises(RuleError, match="dare: like='flower' is not known"):
        preset("dare", "flower")


@pytest.mark.parametrize(
    "make",
    [
        lambda: KeepThreshold(0.0),
        lambda: KeepThreshold(0.5, scope="model"),
        lambda: DropInPlainPrecision(2.0),
        lambda: ElectInPlainPrecision(weighted=True, zero="negative"),
        lambda: ElectInPlainPrecision(weighted=True, votes="lots"),
        lambda: SumInPlainPrecision("mean"),
        lambda: SumInPlainPrecision("weights", floor=-1.0),
        lambda: DropByRankKeepNorm(0.9, 0.2),
        lambda: KeepVaryingOfNonzero(0.0),
    ],
)
def test_arguments_of_preset_stages_are_checked(make: Callable[[], object]) -> None:
    with pytest.raises(RuleError):
        make()


def test_separability_of_presets() -> None:
    assert DropInPlainPrecision(0.5).separable
    assert not DropInPlainPrecision(0.5, keep_norm=True).separable
