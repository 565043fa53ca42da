from __future__ import annotations

import pytest
import torch
from hypothesis import given
from hypothesis import strategies as st

from fedmerge.errors import RuleError
from fedmerge.rules import (
    Chain,
    Draw,
    DropRandom,
    ElectSign,
    EqualWeights,
    KeepLargest,
    Mean,
    Rule,
    Scale,
    Stack,
    Stage,
    chain,
    dare,
    fedavg,
    parse_rule,
    ties,
)
from fedmerge.rules.compose import round_once

DRAW = Draw(0, 0, ("a", "b"), "x", (2,))


@pytest.mark.parametrize(
    ("stages", "sentence"),
    [
        ((), "exactly one stage combines the clients .* here none does"),
        ((KeepLargest(0.2),), "here none does"),
        ((Mean(), Mean()), r"here mean\(\) and mean\(\) does"),
        (
            (Mean(), KeepLargest(0.2)),
            r"keep_largest\(density=0.2\) \(sparsify\) can't come after mean\(\) \(combine\)",
        ),
        ((Mean(), ElectSign()), r"elect_sign\(\) \(elect\) can't come after mean\(\)"),
        (
            (ElectSign(), DropRandom(0.5), Mean()),
            r"drop_random\(density=0.5\) \(sparsify\) can't come after elect",
        ),
        ((ElectSign(), EqualWeights(), Mean()), "the order is weigh, sparsify, elect, combine, scale"),
        ((Scale(2), Mean()), "can't come after scale"),
        (("mean()",), r"'mean\(\)' is no stage"),
    ],
)
def test_stages_that_make_no_rule(stages: tuple[Stage, ...], sentence: str) -> None:
    with pytest.raises(RuleError, match=sentence):
        chain(*stages)


def test_a_stage_of_ones_own_needs_no_base_class() -> None:
    class Largest:
        separable, scope = True, "tensor"

        def __init__(self, phase: str) -> None:
            self.phase = phase

        def __call__(self, stack: Stack, draw: Draw) -> Stack:
            return Stack(stack.values.amax(dim=0, keepdim=True), stack.weights[:1])

        def linear(self, coefficients: torch.Tensor) -> None:
            return None

    stack = Stack(torch.tensor([[1.0, 2.0], [0.0, 3.0]]), torch.ones(2, 1, dtype=torch.float64))
    assert chain(Largest("combine"))(stack, DRAW).tolist() == [1, 3]
    with pytest.raises(RuleError, match="is no stage"):
        chain(Largest("merge"))


def test_equal_stages_are_equal_rules() -> None:
    spelt = parse_rule("chain(keep_largest(density=0.2), elect_sign(), mean())")
    assert spelt == ties(density=0.2)
    assert hash(spelt) == hash(ties(density=0.2))
    assert str(spelt) == "chain(keep_largest(density=0.2), elect_sign(), mean())"
    assert str(ties(density=0.2)) == "ties(density=0.2)"


def test_a_rule_among_the_stages_stands_for_its_stages() -> None:
    assert chain(DropRandom(0.5), ties(density=0.2), Scale(2)).stages == (
        DropRandom(0.5), KeepLargest(0.2), ElectSign(), Mean(), Scale(2),
    )  # fmt: skip
    assert parse_rule("chain(elect_sign, trimmed_mean(trim=0.2))") == parse_rule(
        "chain(elect_sign(), trimmed_mean(0.2))"
    )


def test_protocols() -> None:
    assert isinstance(fedavg(), Rule)
    assert not isinstance(Mean(), Rule)
    assert isinstance(Mean(), Stage)


@pytest.mark.parametrize("weight", [-1.0, float("nan"), float("inf")])
def test_weights_are_finite_and_not_negative(weight: float) -> None:
    weights = torch.tensor([[1.0], [weight]], dtype=torch.float64)
    with pytest.raises(RuleError, match=f"a weight is {weight}"):
        fedavg()(Stack(torch.zeros(2, 2), weights), DRAW)


def test_a_chunk_of_what_needs_the_whole_is_refused() -> None:
    stack = Stack(torch.zeros(2, 2), torch.ones(2, 1, dtype=torch.float64))
    with pytest.raises(RuleError, match=r"ties\(density=0.2\) needs the whole tensor 'x', got a chunk at 5"):
        ties()(stack, DRAW.at(5))


def test_every_client_has_its_silo() -> None:
    with pytest.raises(RuleError, match=r"dare\(density=0.5\): the stack has 1 clients, the draw 2 silos"):
        dare()(Stack(torch.zeros(1, 2), torch.ones(1, 1, dtype=torch.float64)), DRAW)


def test_no_gradient_is_recorded() -> None:
    values = torch.ones(2, 2, requires_grad=True)
    assert not fedavg()(Stack(values, torch.ones(2, 1, dtype=torch.float64)), DRAW).requires_grad


@given(st.floats(allow_nan=False), st.sampled_from([torch.float16, torch.bfloat16]))
def test_sixteen_bits_are_rounded_once(value: float, dtype: torch.dtype) -> None:
    """The result is the nearest of the three neighbours of torch's twice rounded one, ties to even."""
    rounded = round_once(torch.tensor([value], dtype=torch.float64), dtype)
    bits = int(torch.tensor([value], dtype=torch.float64).to(dtype).view(torch.int16))
    near = torch.tensor([bits - 1, bits, bits + 1]).clamp(-(2**15), 2**15 - 1).to(torch.int16).view(dtype)
    exact = near.to(torch.float64)
    distance = torch.where(exact.isfinite(), (exact - value).abs(), torch.inf)
    if not rounded.isfinite().all() or not torch.isfinite(distance).any():
        assert abs(value) > torch.finfo(dtype).max
        return
    nearest = near[distance == distance.min()]
    even = nearest[nearest.view(torch.int16) % 2 == 0] if len(nearest) > 1 else nearest
    assert rounded.to(torch.float64).item() in even.to(torch.float64).tolist()


def test_wider_types_are_left_to_torch() -> None:
    values = torch.tensor([1 / 3], dtype=torch.float64)
    assert torch.equal(round_once(values, torch.float32), values.float())
    assert round_once(values.float(), torch.bfloat16).dtype == torch.bfloat16


def test_chain_is_a_value() -> None:
    assert repr(Chain((Mean(),))) == "Chain(stages=(Mean(),), spelling='')"
