"""Rules that need statistics: what they refuse, and RegMean on LoRA factors."""

from __future__ import annotations

import numpy as np
import pytest
import torch
from torch import Tensor

from fedmerge.errors import RuleError
from fedmerge.rules import Draw, FisherWeights, Stack, fedavg, fisher, parse_rule, regmean, ties
from fedmerge.rules.statistics import needs_of

from . import oracles_informed

Array = np.ndarray
DRAW = Draw(0, 0, ("a", "b"), "q.lora_B.weight", (2,))
ONES = torch.ones(2, 1, dtype=torch.float64)


def stack(fisher: Tensor) -> Stack:
    return Stack(torch.tensor([[1.0, 2.0], [5.0, 2.0]]), ONES, {"fisher": fisher})


def test_needs() -> None:
    assert needs_of(fedavg()) == needs_of(ties(density=0.2)) == frozenset()
    assert needs_of(fisher()) == {"fisher"}
    assert needs_of(regmean()) == {"gram"}
    assert needs_of(parse_rule("chain(fisher_weights(), keep_largest(density=0.2), mean())")) == {"fisher"}


def test_a_fisher_below_the_floor_is_the_mean() -> None:
    given = stack(torch.tensor([[1e-9, 0.0], [1e-7, 0.0]]))
    assert fisher()(given, DRAW).tolist() == [3.0, 2.0]


def test_a_fisher_of_zeros_without_a_floor_leaves_what_was_received() -> None:
    assert fisher(floor=0.0)(stack(torch.zeros(2, 2)), DRAW).tolist() == [0.0, 0.0]


def test_normalizing_takes_out_how_steep_a_loss_is() -> None:
    flat, steep = torch.tensor([3.0, 1.0]), torch.tensor([1.0, 3.0])
    plain = fisher(normalize="adapter")(stack(torch.stack([flat, steep])), DRAW)
    scaled = fisher(normalize="adapter")(stack(torch.stack([flat, 64 * steep])), DRAW)
    assert torch.equal(plain, scaled)
    assert not torch.equal(plain, fisher()(stack(torch.stack([flat, 64 * steep])), DRAW))
    assert fisher(normalize="adapter").scope == "adapter" and fisher(normalize="tensor").scope == "tensor"
    assert fisher().separable and not fisher(normalize="tensor").separable


@pytest.mark.parametrize("bad", [-1.0, float("nan"), float("inf")])
def test_a_fisher_that_can_be_none_is_refused(bad: float) -> None:
    with pytest.raises(RuleError, match=r"q\.lora_B\.weight.*finite and not negative"):
        fisher()(stack(torch.tensor([[1.0, bad], [1.0, 1.0]])), DRAW)


def test_without_the_statistic() -> None:
    bare = Stack(torch.zeros(2, 2), ONES)
    with pytest.raises(RuleError, match=r"needs the diagonal Fisher of every tensor.*q\.lora_B\.weight"):
        fisher()(bare, DRAW)


@pytest.mark.parametrize(
    ("statistic", "match"),
    [
        (torch.zeros(2, 3), r"\(2, 2\), or \(2, rank, rank\), got torch.float32 of shape \(2, 3\)"),
        (torch.zeros(3, 2), r"of shape \(3, 2\)"),
        (torch.zeros(()), r"of shape \(\)"),
        (torch.zeros(2, 2, dtype=torch.int64), "got torch.int64"),
        (torch.zeros(2, 2, device="meta"), "is on meta, the values on cpu"),
    ],
)
def test_a_stack_refuses_statistics_that_do_not_fit(statistic: Tensor, match: str) -> None:
    with pytest.raises(RuleError, match=match):
        stack(statistic)


def test_columns_take_their_statistics_along() -> None:
    given = stack(torch.tensor([[1.0, 2.0], [3.0, 4.0]])).columns(1, 2)
    assert given.statistics["fisher"].tolist() == [[2.0], [4.0]]
    gram = torch.eye(2).expand(2, 2, 2)
    whole = Stack(torch.zeros(2, 2), ONES, {"gram": gram}).columns(0, 1)
    assert torch.equal(whole.statistics["gram"], gram)


@pytest.mark.parametrize(
    "text",
    [
        "fisher(floor=-1.0)",
        "fisher(floor=True)",
        "fisher(normalize='layer')",
        "regmean(off_diagonal=0)",
        "regmean(off_diagonal=1.1)",
    ],
)
def test_knobs_out_of_range(text: str) -> None:
    with pytest.raises(RuleError):
        parse_rule(text)
    assert str(FisherWeights(floor=0.5)) == "fisher_weights(floor=0.5)"


def layer(clients: int, rank: int, outputs: int = 5) -> tuple[list[Array], list[Array]]:
    """What B is fed at each client (rank, tokens), of unequal numbers, and the targets (outputs, tokens)."""
    random = np.random.default_rng(3)
    counts = [rank + 4 + 7 * client for client in range(clients)]
    inputs = [random.normal(size=(rank, count)) * (1 + np.arange(rank))[:, None] for count in counts]
    return inputs, [random.normal(size=(outputs, count)) for count in counts]


def merged(factors: list[Array], inputs: list[Array], weights: list[float], off_diagonal: float) -> Array:
    outputs, rank = factors[0].shape
    grams = torch.from_numpy(np.stack([x @ x.T / x.shape[1] for x in inputs]))
    given = Stack(
        torch.from_numpy(np.stack([factor.reshape(-1) for factor in factors])),
        torch.tensor(weights, dtype=torch.float64)[:, None],
        {"gram": grams},
    )
    names = tuple(f"silo-{client}" for client in range(len(factors)))
    draw = Draw(0, 0, names, "q.lora_B.weight", (outputs, rank))
    return regmean(off_diagonal)(given, draw).reshape(outputs, rank).numpy()


def test_regmean_is_the_least_squares_fit_of_all_silos_together() -> None:
    """A is frozen and shared: each B_i fits its silo's targets, the merged B those of all silos."""
    inputs, targets = layer(3, rank=4)
    fits = [oracles_informed.least_squares([x], [y]) for x, y in zip(inputs, targets, strict=True)]
    examples = [float(x.shape[1]) for x in inputs]
    wanted = oracles_informed.least_squares(inputs, targets)
    np.testing.assert_allclose(merged(fits, inputs, examples, 1.0), wanted, rtol=1e-10)
    mean = sum(w * fit for w, fit in zip(examples, fits, strict=True)) / sum(examples)
    assert np.abs(mean - wanted).max() > 0.01


def test_regmean_of_deltas_is_that_of_the_factors_less_what_was_received() -> None:
    inputs, targets = layer(3, rank=4)
    fits = [oracles_informed.least_squares([x], [y]) for x, y in zip(inputs, targets, strict=True)]
    start, weights = np.random.default_rng(0).normal(size=fits[0].shape), [1.0, 2.0, 3.0]
    deltas = merged([fit - start for fit in fits], inputs, weights, 1.0)
    np.testing.assert_allclose(start + deltas, merged(fits, inputs, weights, 1.0), rtol=1e-10)


def test_regmean_answers_as_each_silo_does_in_the_least_squares_sense() -> None:
    """No targets: sum w_i E |B x - B_i x|^2, by numpy on the rows themselves."""
    inputs, _ = layer(3, rank=4)
    random = np.random.default_rng(1)
    factors, weights = [random.normal(size=(5, 4)) for _ in inputs], [1.0, 5.0, 0.5]
    scaled = [x * np.sqrt(w / x.shape[1]) for w, x in zip(weights, inputs, strict=True)]
    answers = [factor @ x for factor, x in zip(factors, scaled, strict=True)]
    wanted = oracles_informed.least_squares(scaled, answers)
    np.testing.assert_allclose(merged(factors, inputs, weights, 1.0), wanted, rtol=1e-10)


def test_regmean_of_smaller_off_diagonals() -> None:
    inputs, _ = layer(2, rank=3)
    factors = [np.random.default_rng(seed).normal(size=(5, 3)) for seed in range(2)]
    grams = [x @ x.T / x.shape[1] for x in inputs]
    shrunk = [np.where(np.eye(3, dtype=bool), gram, 0.95 * gram) for gram in grams]
    wanted = sum(f @ g for f, g in zip(factors, shrunk, strict=True)) @ np.linalg.inv(sum(shrunk))
    np.testing.assert_allclose(merged(factors, inputs, [1.0, 1.0], 0.95), wanted, rtol=1e-10)


def test_regmean_leaves_what_no_input_reaches() -> None:
    inputs, _ = layer(2, rank=3)
    dead = [np.concatenate([x[:2], 0 * x[2:]]) for x in inputs]
    factors = [np.random.default_rng(seed).normal(size=(5, 3)) for seed in range(2)]
    result = merged(factors, dead, [1.0, 1.0], 1.0)
    assert np.abs(result[:, 2]).max() < 1e-12 and np.isfinite(result).all()


def test_regmean_of_equal_factors_is_that_factor() -> None:
    inputs, _ = layer(2, rank=3)
    factor = np.random.default_rng(0).normal(size=(5, 3))
    np.testing.assert_allclose(merged([factor, factor], inputs, [1.0, 2.0], 0.95), factor, rtol=1e-10)


def test_regmean_refuses_grams_that_do_not_fit() -> None:
    given = Stack(torch.zeros(2, 6), ONES, {"gram": torch.ones(2, 2, 2)})
    with pytest.raises(RuleError, match=r"\(2, 3\), its Gram matrices \(2, 2\)"):
        regmean()(given, Draw(0, 0, ("a", "b"), "q.lora_B.weight", (2, 3)))
    endless = Stack(torch.zeros(2, 6), ONES, {"gram": torch.full((2, 3, 3), torch.inf)})
    with pytest.raises(RuleError, match="not finite"):
        regmean()(endless, Draw(0, 0, ("a", "b"), "q.lora_B.weight", (2, 3)))
