from __future__ import annotations

import io
from dataclasses import replace

import numpy as np
import pytest
import safetensors.torch
import torch

from fedmerge.adapters.adapter import Lora
from fedmerge.adapters.merge import merge
from fedmerge.adapters.optimizers import Adam, Momentum, Unchanged, parse_optimizer
from fedmerge.adapters.spaces import Factors, Product
from fedmerge.errors import AdapterMismatch, RuleError

A = "base_model.model.layers.0.q_proj.lora_A.weight"
B = "base_model.model.layers.0.q_proj.lora_B.weight"
MODULE = A.removesuffix(".lora_A.weight")


def rounds(optimizer, make, space, *, count=3, dtype=torch.float64):
    """Run some rounds; yields received, merged, next and state of each."""
    received, state = make(0, dtype=dtype), None
    for number in range(count):
        deltas = [make(10 * number + i, scale=0.1, dtype=dtype) for i in (1, 2)]
        merged = merge(deltas, received=received, space=space, round=number)
        following, state = optimizer.step(received, merged, state)
        yield received, merged, following, state
        received = following


@pytest.mark.parametrize("space", ["factors()", "product()"])
@pytest.mark.parametrize("optimizer", [Unchanged(), Momentum(rate=1.0, beta=0.0)])
@pytest.mark.parametrize("dtype", [torch.float32, torch.bfloat16])
def test_no_momentum_is_the_merged_adapter_bit_for_bit(make, same_bits, space, optimizer, dtype):
    for _, merged, following, state in rounds(optimizer, make, space, dtype=dtype):
        assert same_bits(following, merged.adapter)
        assert state == {}


def test_a_first_step_of_momentum_in_factors_is_the_merged_adapter_bit_for_bit(make, same_bits):
    for dtype in (torch.float32, torch.bfloat16):
        _, merged, following, _ = next(rounds(Momentum(beta=0.9), make, "factors()", dtype=dtype))
        assert same_bits(following, merged.adapter)


def test_momentum_in_factors_follows_its_formula(make):
    velocity = 0.0
    for received, merged, following, _ in rounds(Momentum(rate=0.5, beta=0.8), make, "factors()"):
        velocity = 0.8 * velocity + merged.delta.tensors[A]
        torch.testing.assert_close(following.tensors[A], received.tensors[A] + 0.5 * velocity)


def test_momentum_in_products_follows_its_formula_on_true_updates(make, dense, truncated):
    """Against dense matrices; the state keeps twice the rank."""
    velocity = 0.0
    for received, merged, following, state in rounds(Momentum(rate=0.5, beta=0.8), make, "product()"):
        step = dense(merged.adapter)[MODULE] - dense(received)[MODULE]
        velocity = truncated(0.8 * velocity + step, 6)
        left, right = state[f"momentum/{MODULE}.left"], state[f"momentum/{MODULE}.right"]
        assert left.shape[1] == right.shape[0] <= 6
        np.testing.assert_allclose(left @ right, velocity, atol=1e-9)
        expected = truncated(dense(received)[MODULE] + 0.5 * velocity, 3)
        np.testing.assert_allclose(dense(following)[MODULE], expected, atol=1e-9)
        head = merged.adapter.tensors["head.weight"] - received.tensors["head.weight"]
        assert torch.isfinite(head).all()


def test_heads_have_momentum_in_products_as_in_factors(make):
    head = {}
    for space in ("factors()", "product()"):
        *_, (_, _, following, _) = rounds(Momentum(rate=0.5, beta=0.8), make, space)
        head[space] = following.tensors["head.weight"]
    torch.testing.assert_close(head["factors()"], head["product()"])


def test_a_first_step_of_momentum_in_products_is_the_merged_product(make, dense):
    _, merged, following, _ = next(rounds(Momentum(beta=0.9), make, "product()"))
    for module, matrix in dense(merged.adapter).items():
        np.testing.assert_allclose(dense(following)[module], matrix, atol=1e-9)
    assert following.lora == merged.adapter.lora


def test_the_rank_of_the_merge_bounds_the_momentum_too(make, dense):
    for *_, following, _ in rounds(Momentum(rate=0.5), make, "product(rank=1)"):
        assert np.linalg.matrix_rank(dense(following)[MODULE], tol=1e-9) == 1
        assert following.tensors[A].shape == (3, 12)


def test_from_a_fresh_adapter_and_back_to_zero_momentum_stays_trainable(make):
    received = make(0, zero_b=True)
    zero = replace(received, tensors={name: torch.zeros_like(t) for name, t in received.tensors.items()})
    merged = merge([zero], received=received, space="product()")
    following, state = Momentum().step(received, merged, None)
    assert torch.equal(following.tensors[A], received.tensors[A])
    following, _ = Momentum().step(following, merge([zero], received=following, space="product()"), state)
    assert torch.equal(following.tensors[A], received.tensors[A])


def test_adam_follows_its_formula(make):
    mean, square = 0.0, 1e-6
    for received, merged, following, _ in rounds(Adam(rate=0.01), make, "factors()"):
        step = merged.delta.tensors[A]
        mean, square = 0.9 * mean + 0.1 * step, 0.99 * square + 0.01 * step**2
        expected = received.tensors[A] + 0.01 * mean / (square.sqrt() + 1e-3)
        torch.testing.assert_close(following.tensors[A], expected)


@pytest.mark.parametrize(
    "optimizer, space", [(Momentum(), "factors()"), (Momentum(), "product()"), (Adam(), "factors()")]
)
def test_a_state_written_and_read_goes_on_in_the_same_bits(make, same_bits, optimizer, space):
    *_, (_, _, straight, _) = rounds(optimizer, make, space, count=3, dtype=torch.float32)
    *_, (_, _, received, state) = rounds(optimizer, make, space, count=2, dtype=torch.float32)
    state = safetensors.torch.load(io.BytesIO(safetensors.torch.save(state)).getvalue())
    deltas = [make(20 + i, scale=0.1, dtype=torch.float32) for i in (1, 2)]
    resumed, _ = optimizer.step(received, merge(deltas, received=received, space=space, round=2), state)
    assert same_bits(straight, resumed)


def test_adam_is_refused_outside_factors(make):
    merged = merge([make(1)], received=make(0), space="product()")
    with pytest.raises(RuleError, match=r"adam\(\) works in factors\(\) only; .* product\(\)"):
        Adam().step(make(0), merged, None)
    with pytest.raises(RuleError, match=r"factors\(\) only"):
        Adam().check_space(Product())
    Adam().check_space(Factors())
    Momentum().check_space(Product())
    Unchanged().check_space(Product())


@pytest.mark.parametrize("optimizer", [Momentum(), Adam()])
@pytest.mark.parametrize("state", [{}, {f"momentum/{A}": torch.zeros(1), f"adam/first/{A}": torch.zeros(1)}])
def test_a_state_of_something_else_is_refused(make, optimizer, state):
    with pytest.raises(AdapterMismatch, match="server optimizer state"):
        optimizer.step(make(0), merge([make(1)], received=make(0)), state)


@pytest.mark.parametrize("left", [None, torch.zeros(2, 2), torch.zeros(2)])
def test_a_product_state_of_something_else_is_refused(make, left):
    received = make(0, head=False)
    merged = merge([make(1, head=False)], received=received, space="product()")
    _, state = Momentum().step(received, merged, None)
    key = f"momentum/{MODULE}.left"
    state = {name: tensor for name, tensor in state.items() if name != key} | (
        {} if left is None else {key: left}
    )
    with pytest.raises(AdapterMismatch, match="server optimizer state"):
        Momentum().step(received, merged, state)


def test_a_merge_that_grows_the_rank_keeps_it(make, dense):
    received = make(0, dtype=torch.float64)
    merged = merge([make(1, dtype=torch.float64)], received=received, space="product(rank=6)")
    following, _ = Momentum().step(received, merged, None)
    assert following.lora == Lora(6, 12)
    for module, matrix in dense(merged.adapter).items():
        np.testing.assert_allclose(dense(following)[module], matrix, atol=1e-9)


@pytest.mark.parametrize(
    "text", ["none()", "momentum()", "momentum(rate=0.5)", "adam(rate=0.01)", "adam(rate=0.1, beta1=0.5)"]
)
def test_text_round_trip(text):
    assert str(parse_optimizer(text)) == text
    assert parse_optimizer(str(parse_optimizer(text))) == parse_optimizer(text)


@pytest.mark.parametrize(
    "text",
    [
        "momentun()",
        "momentum(bta=1)",
        "momentum(beta=1.0)",
        "momentum(rate=0)",
        "momentum(rate='1')",
        "adam(rate=-1)",
        "adam(epsilon=0)",
        "adam(beta2=1)",
        "adam(rate=True)",
    ],
)
def test_bad_text_is_refused(text):
    with pytest.raises(RuleError):
        parse_optimizer(text)
