"""The product space against a dense oracle in float64."""

from __future__ import annotations

from dataclasses import replace

import numpy as np
import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st

from fedmerge.adapters import apply
from fedmerge.adapters.adapter import Adapter, Lora
from fedmerge.adapters.merge import merge
from fedmerge.adapters.spaces import Factors, Product, layers, parse_space
from fedmerge.errors import AdapterMismatch, RuleError
from fedmerge.rules import fedavg, task_arithmetic


class Opaque:
    """A rule that hides that it is linear, so that the dense way is taken."""

    kind, scope, separable = "elementwise", "tensor", True

    def __init__(self, rule):
        self.rule = rule

    def __call__(self, stack, draw):
        return self.rule(stack, draw)

    def linear(self, weights):
        return None


WEIGHTS = [5.0, 0.5, 2.0]
SHARES = np.array(WEIGHTS) / sum(WEIGHTS)


def round_of(make, **knobs):
    knobs = {"dtype": torch.float64, **knobs}
    return make(0, **knobs), [make(seed, scale=0.3, **{**knobs, "zero_b": False}) for seed in (1, 2, 3)]


def updates(dense, received, deltas):
    before = dense(received)
    return {
        module: np.stack([dense(delta, plus=received)[module] - matrix for delta in deltas])
        for module, matrix in before.items()
    }


def close(given, expected):
    for module, matrix in expected.items():
        np.testing.assert_allclose(given[module], matrix, atol=1e-10 * np.abs(matrix).max())


@pytest.mark.parametrize("zero_b", [False, True])
@pytest.mark.parametrize("lora", [Lora(3, 6), Lora(4, 6, rslora=True)])
def test_fedavg_is_the_best_truncation_of_received_plus_mean(make, dense, truncated, zero_b, lora):
    received, deltas = round_of(make, zero_b=zero_b, lora=lora)
    merged = merge(deltas, WEIGHTS, received=received, space="product()")
    before = dense(received)
    expected, shares = {}, {}
    for module, stacked in updates(dense, received, deltas).items():
        whole = before[module] + np.einsum("i,ijk->jk", SHARES, stacked)
        expected[module] = truncated(whole, lora.rank)
        shares[module] = ((whole - expected[module]) ** 2).sum() / (whole**2).sum()
    close(dense(merged.adapter), expected)
    assert merged.adapter.lora == lora
    assert merged.delta is None
    assert merged.rank == lora.rank
    for module, share in shares.items():
        np.testing.assert_allclose(merged.report.discarded[module], share, rtol=1e-9)


@pytest.mark.parametrize("rule", [fedavg(), task_arithmetic(scale=0.7)], ids=str)
def test_the_thin_and_the_dense_way_agree(make, dense, rule):
    received, deltas = round_of(make)
    thin = merge(deltas, WEIGHTS, received=received, space="product()", rule=rule)
    whole = merge(deltas, WEIGHTS, received=received, space="product()", rule=Opaque(rule))
    close(dense(thin.adapter), dense(whole.adapter))
    torch.testing.assert_close(thin.adapter.tensors["head.weight"], whole.adapter.tensors["head.weight"])
    for module, share in thin.report.discarded.items():
        np.testing.assert_allclose(whole.report.discarded[module], share, rtol=1e-8)


@pytest.mark.parametrize("tile", [1 << 22, 40])
def test_ties_works_on_the_dense_updates(make, dense, truncated, monkeypatch, tile):
    """Trim, elect, mean, by hand on the stacked true updates, in tiles that end in the middle of rows."""
    monkeypatch.setitem(apply.TILE_VALUES, "cpu", tile)
    received, deltas = round_of(make)
    merged = merge(deltas, WEIGHTS, received=received, space="product()", rule="ties(density=0.3)")
    expected = {}
    for module, stacked in updates(dense, received, deltas).items():
        flat = stacked.reshape(3, -1).copy()
        for row in flat:
            row[np.argsort(-np.abs(row))[int(0.3 * len(row)) :]] = 0
        weights = (
            np.array(WEIGHTS)[:, None] * (np.sign(flat) == np.sign(np.array(WEIGHTS) @ flat)) * (flat != 0)
        )
        mean = (weights * flat).sum(0) / np.maximum(weights.sum(0), 1e-300)
        expected[module] = truncated(dense(received)[module] + mean.reshape(stacked.shape[1:]), 3)
    close(dense(merged.adapter), expected)


@pytest.mark.parametrize("rule", ["ties(density=0.3)", "dare_ties(density=0.5)", "dare(density=0.5)"])
def test_kernels_and_stages_give_the_same_bits(make, same_bits, monkeypatch, rule):
    """On dense updates too, side by side for a kernel, or by tiles where they are too large for that."""
    received, deltas = round_of(make, dtype=torch.float32)
    knobs = {"received": received, "space": "product()", "rule": rule, "names": ["a", "b", "c"]}
    knobs["device"] = "cpu"
    plain = merge(deltas, WEIGHTS, kernel="plain", **knobs)
    fused = merge(deltas, WEIGHTS, kernel="numba", **knobs)
    assert (plain.report.kernel, fused.report.kernel) == ("plain", "numba")
    assert same_bits(plain.adapter, fused.adapter)
    monkeypatch.setattr(layers, "DENSE_BYTES", 0)
    monkeypatch.setitem(apply.TILE_VALUES, "cpu", 40)
    assert same_bits(plain.adapter, merge(deltas, WEIGHTS, **knobs).adapter)


def test_an_adapter_wide_rule_sees_products_and_heads_together(make, dense):
    delta = make(1, dtype=torch.float64)
    rule = "ties(density=0.1, scope='adapter')"
    merged = merge([delta], space="product(rank=10)", rule=rule).adapter
    products = dense(delta)
    flat = [products[name].reshape(-1) for name in sorted(products)]
    everything = np.concatenate([*flat, delta.tensors["head.weight"].numpy().reshape(-1)])
    threshold = np.sort(np.abs(everything))[-int(0.1 * len(everything))]
    for module, matrix in products.items():
        kept = np.where(np.abs(matrix) >= threshold, matrix, 0)
        np.testing.assert_allclose(dense(merged)[module], kept, atol=1e-9)


def test_the_result_does_not_depend_on_how_a_client_factored(make, dense):
    lora = Lora(3, 6)
    received, deltas = round_of(make, lora=lora)
    plain = merge(deltas, WEIGHTS, received=received, space="product()").adapter

    def refactored(delta, seed):
        tensors = {}
        for name, tensor in delta.tensors.items():
            trained = received.tensors[name] + tensor
            turn = torch.randn(3, 3, generator=torch.Generator().manual_seed(seed), dtype=torch.float64)
            if "lora_A" in name:
                trained = torch.linalg.solve(turn, trained)
            elif "lora_B" in name:
                trained = trained @ turn
            tensors[name] = trained - received.tensors[name]
        return replace(delta, tensors=tensors)

    turned = [refactored(delta, seed) for seed, delta in enumerate(deltas)]
    other = merge(turned, WEIGHTS, received=received, space="product()", names=["a", "b", "c"]).adapter
    close(dense(other), dense(plain))
    factors = merge(turned, WEIGHTS, received=received).adapter
    with pytest.raises(AssertionError):
        close(dense(factors), dense(merge(deltas, WEIGHTS, received=received).adapter))


def test_even_the_factors_are_fixed_whatever_the_clients_factors(make):
    """Signs and order of the singular vectors: equal products give equal factors, up to rounding."""
    received, deltas = round_of(make)
    flipped = []
    for delta in deltas:
        trained = {name: received.tensors[name] + tensor for name, tensor in delta.tensors.items()}
        turned = {n: (-t if "lora_" in n else t).flip(0 if "lora_A" in n else 1) if "lora_" in n else t
                  for n, t in trained.items()}  # fmt: skip
        flipped.append(replace(delta, tensors={n: t - received.tensors[n] for n, t in turned.items()}))
    one = merge(deltas, received=received, space="product()", names=["a", "b", "c"]).adapter
    two = merge(flipped, received=received, space="product()", names=["a", "b", "c"]).adapter
    for name in one.tensors:
        torch.testing.assert_close(one.tensors[name], two.tensors[name], atol=1e-9, rtol=1e-9)


def test_offline_ranks_and_scalings_mix(make, dense, truncated):
    loras = [Lora(2, 6), Lora(4, 4), Lora(3, 5, rslora=True)]
    deltas = [make(seed, lora=lora, dtype=torch.float64) for seed, lora in enumerate(loras)]
    whole = {
        module: np.einsum("i,ijk->jk", SHARES, np.stack([dense(delta)[module] for delta in deltas]))
        for module in dense(deltas[0])
    }
    merged = merge(deltas, WEIGHTS, space="product()").adapter
    assert merged.lora == Lora(4, 4)
    close(dense(merged), {module: truncated(matrix, 4) for module, matrix in whole.items()})
    exact = merge(deltas, WEIGHTS, space="product(rank=9)").adapter
    assert exact.lora == Lora(9, 9)
    close(dense(exact), whole)
    small = merge(deltas, WEIGHTS, space="product(rank=2)").adapter
    assert small.tensors["base_model.model.layers.0.q_proj.lora_A.weight"].shape == (2, 12)
    close(dense(small), {module: truncated(matrix, 2) for module, matrix in whole.items()})


def test_offline_ranks_mix_in_nonlinear_rules_too(make, dense, truncated):
    deltas = [make(1, lora=Lora(2, 6), dtype=torch.float64), make(2, lora=Lora(4, 4), dtype=torch.float64)]
    merged = merge(deltas, space="product()", rule="median()").adapter
    expected = {
        module: truncated((dense(deltas[0])[module] + dense(deltas[1])[module]) / 2, 4)
        for module in dense(deltas[0])
    }
    close(dense(merged), expected)


def test_a_smaller_rank_keeps_the_received_shape(make, dense, truncated):
    received, deltas = round_of(make)
    merged = merge(deltas, received=received, space="product(rank=1)").adapter
    assert {name: t.shape for name, t in merged.tensors.items()} == {
        name: t.shape for name, t in received.tensors.items()
    }
    assert merged.lora == received.lora
    assert all(np.linalg.matrix_rank(matrix, tol=1e-9) == 1 for matrix in dense(merged).values())


def test_a_larger_rank_is_exact(make, dense):
    received, deltas = round_of(make)
    merged = merge(deltas, WEIGHTS, received=received, space="product(rank=12)")
    before = dense(received)
    close(
        dense(merged.adapter),
        {
            m: before[m] + np.einsum("i,ijk->jk", SHARES, s)
            for m, s in updates(dense, received, deltas).items()
        },
    )
    assert merged.adapter.lora == Lora(12, 24)
    assert merged.report.discarded_total < 1e-20


def test_a_round_without_training_from_a_fresh_adapter_changes_nothing(make, same_bits):
    received = make(0, zero_b=True)
    zero = replace(received, tensors={name: torch.zeros_like(t) for name, t in received.tensors.items()})
    merged = merge([zero, zero], received=received, space="product()")
    assert same_bits(merged.adapter, received)
    assert merged.report.discarded_total == 0.0


def test_frozen_a_is_merged_exactly(make, dense):
    received = make(0, zero_b=True, dtype=torch.float64)
    deltas = [
        replace(d, tensors={n: t * ("lora_A" not in n) for n, t in d.tensors.items()})
        for d in (make(1, dtype=torch.float64), make(2, dtype=torch.float64))
    ]
    merged = merge(deltas, received=received, space="product()")
    assert merged.report.discarded_total < 1e-25
    factors = merge(deltas, received=received)
    close(dense(merged.adapter), dense(factors.adapter))


def test_tiny_deltas_on_large_factors_keep_their_digits(make, dense):
    """B_i A_i - B_0 A_0 by subtraction would lose 8 digits here, and the bases are nearly parallel."""
    received, deltas = round_of(make)
    tiny = [replace(d, tensors={n: 1e-8 * t for n, t in d.tensors.items()}) for d in deltas]
    merged = merge(tiny, received=received, space="product(rank=12)").adapter
    before, after = dense(received), dense(merged)
    a, b = "base_model.model.layers.0.q_proj.lora_A.weight", "base_model.model.layers.0.q_proj.lora_B.weight"
    step = np.mean([
        2 * (received.tensors[b] @ d.tensors[a] + d.tensors[b] @ received.tensors[a]).numpy() for d in tiny
    ], axis=0)  # fmt: skip
    np.testing.assert_allclose(after[a[:-14]] - before[a[:-14]], step, atol=1e-6 * np.abs(step).max())


def test_the_scaling_can_come_from_either_side(make, same_bits):
    received, deltas = round_of(make)
    bare = [delta.tensors for delta in deltas]
    one = merge(bare, received=received, space="product()").adapter
    two = merge(deltas, received=received.tensors, space="product()").adapter
    assert same_bits(one, two)
    assert one.lora == two.lora == Lora(3, 6)


@pytest.mark.parametrize("received", [False, True])
def test_without_lora_settings_there_is_a_sentence(make, received):
    with pytest.raises(AdapterMismatch, match="needs the LoRA scaling"):
        merge([make(1).tensors], received=make(0).tensors if received else None, space="product()")


def test_factors_of_another_rank_than_the_settings_are_refused(make):
    with pytest.raises(AdapterMismatch, match="have rank 3, the LoRA settings say 4"):
        merge([replace(make(1), lora=Lora(4, 8))], space="product()")


def test_a_product_beyond_float64_is_an_error(make):
    big = make(1, dtype=torch.float64)
    big = replace(big, tensors={name: 1e200 * t for name, t in big.tensors.items()})
    for rule in ("fedavg()", "median()"):
        with pytest.raises(AdapterMismatch, match="overflows"):
            merge([big], space="product()", rule=rule)


def test_heads_alone_need_no_factors():
    merged = merge([Adapter({"head.weight": torch.ones(2)}, Lora(2, 4))], space="product()")
    assert merged.adapter.tensors["head.weight"].tolist() == [1, 1]


@pytest.mark.parametrize(
    "text, space", [("factors()", Factors()), ("product", Product()), ("product(rank=8)", Product(8))]
)
def test_text_round_trip(text, space):
    assert parse_space(text) == space
    assert parse_space(str(space)) == space


@pytest.mark.parametrize(
    "text", ["products()", "product(rank=0)", "product(rank=1.5)", "product(rank=True)", "factors(1)"]
)
def test_bad_text_is_refused(text):
    with pytest.raises(RuleError):
        parse_space(text)


@settings(max_examples=40, deadline=None)
@given(
    clients=st.integers(1, 4), rank=st.integers(1, 4), shape=st.tuples(st.integers(1, 8), st.integers(1, 8)),
    seed=st.integers(0, 10_000), start=st.sampled_from(["none", "zero_b", "full"]),
)  # fmt: skip
def test_property_product_fedavg_equals_the_dense_oracle(clients, rank, shape, seed, start):
    generator = torch.Generator().manual_seed(seed)

    def pair(scale_b=1.0):
        a = torch.randn(rank, shape[1], generator=generator, dtype=torch.float64)
        b = scale_b * torch.randn(shape[0], rank, generator=generator, dtype=torch.float64)
        return Adapter({"q.lora_A.weight": a, "q.lora_B.weight": b}, Lora(rank, 3.0))

    received = None if start == "none" else pair(scale_b=float(start == "full"))
    deltas = [pair() for _ in range(clients)]
    weights = torch.rand(clients, generator=generator, dtype=torch.float64) + 0.1

    def dense(adapter, plus=None):
        a, b = (
            adapter.tensors[n] + (plus.tensors[n] if plus else 0)
            for n in ("q.lora_A.weight", "q.lora_B.weight")
        )
        return 3.0 / rank * b @ a

    merged = merge(deltas, weights, received=received, space="product()")
    before = dense(received) if received else 0
    shares = weights / weights.sum()
    whole = before + sum(c * (dense(d, plus=received) - before) for c, d in zip(shares, deltas, strict=True))
    u, s, vh = torch.linalg.svd(whole, full_matrices=False)
    best = u[:, :rank] @ torch.diag(s[:rank]) @ vh[:rank]
    if len(s) <= rank or s[rank] < 0.999 * s[rank - 1]:
        torch.testing.assert_close(dense(merged.adapter), best, atol=1e-7 * float(s[0]), rtol=0)
    torch.testing.assert_close(
        (whole - dense(merged.adapter)).square().sum(),
        s[rank:].square().sum(),
        atol=1e-12 * float(s[0]) ** 2,
        rtol=1e-9,
    )
