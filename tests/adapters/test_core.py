"""The aligned space against numpy, and its reports."""

from __future__ import annotations

from dataclasses import replace

import numpy as np
import pytest
import torch

from fedmerge.adapters.adapter import Adapter, Lora
from fedmerge.adapters.merge import merge
from fedmerge.adapters.spaces import Core, parse_space
from fedmerge.errors import AdapterMismatch, RuleError

WEIGHTS = [5.0, 0.5, 2.0]
SHARES = np.array(WEIGHTS) / sum(WEIGHTS)
LORAS = [Lora(2, 6), Lora(4, 4), Lora(3, 5, rslora=True)]


def mixed(make):
    return [make(seed, lora=lora, dtype=torch.float64) for seed, lora in enumerate(LORAS)]


def close(given, expected, tolerance=1e-9):
    for module, matrix in expected.items():
        np.testing.assert_allclose(given[module], matrix, atol=tolerance * np.abs(matrix).max())


def singular(matrix):
    u, s, vh = np.linalg.svd(matrix, full_matrices=False)
    count = int((s > 1e-9 * s[0]).sum())
    return u[:, :count], s[:count], vh[:count]


def aligned_median(updates, weights):
    """Canonicalise by the thin SVD, align, take the weighted median of each entry, map back."""
    roots = np.sqrt(np.array(weights) * len(weights) / sum(weights))
    parts = [singular(update) for update in updates]
    left = np.concatenate(
        [root * u * np.sqrt(s) for root, (u, s, _) in zip(roots, parts, strict=True)], axis=1
    )
    right = np.concatenate(
        [root * np.sqrt(s)[:, None] * v for root, (_, s, v) in zip(roots, parts, strict=True)]
    )
    u, vh = singular(left)[0], singular(right)[2]
    cores = np.stack([u.T @ update @ vh.T for update in updates])
    order = np.argsort(cores, axis=0)
    cumulated = np.cumsum(np.array(weights)[order], axis=0)
    chosen = np.take_along_axis(order, (cumulated > sum(weights) / 2).argmax(axis=0)[None], axis=0)
    return u @ np.take_along_axis(cores, chosen, axis=0)[0] @ vh


@pytest.mark.parametrize("start", [False, True])
def test_median_of_the_cores(make, dense, truncated, start):
    received = make(0, dtype=torch.float64) if start else None
    deltas = [make(seed, scale=0.4, dtype=torch.float64) for seed in (1, 2, 3)]
    weights = [1.5, 1.0, 2.0]
    merged = merge(deltas, weights, received=received, space="core(rank=5)", rule="median()")
    before = dense(received) if start else dict.fromkeys(dense(deltas[0]), 0.0)
    expected = {}
    for module in dense(deltas[0]):
        updates = np.stack([dense(delta, plus=received)[module] - before[module] for delta in deltas])
        step = aligned_median(updates, weights)
        whole = before[module] + step
        expected[module] = truncated(whole, 5)
        lost = ((whole - expected[module]) ** 2).sum()
        np.testing.assert_allclose(merged.report.discarded[module], lost / (whole**2).sum(), rtol=1e-7)
        np.testing.assert_allclose(
            merged.report.aggregation_error[module], np.sqrt(lost / (step**2).sum()), rtol=1e-7
        )
        spectrum = np.linalg.svd(expected[module])[1][:5]
        parts = spectrum / spectrum.sum()
        np.testing.assert_allclose(
            merged.report.effective_rank[module], np.exp(-(parts * np.log(parts)).sum()), rtol=1e-7
        )
    close(dense(merged.adapter), expected)
    assert merged.rank == 5


@pytest.mark.parametrize("space", ["core(rank=9)", "core(rank=9, like='paper')"])
def test_a_linear_rule_gives_the_product(make, dense, space):
    """Ranks and scalings (alpha, rsLoRA) of all kinds; exact at the sum of the ranks."""
    deltas = mixed(make)
    whole = {
        module: np.einsum("i,ijk->jk", SHARES, np.stack([dense(delta)[module] for delta in deltas]))
        for module in dense(deltas[0])
    }
    for rule in ("fedavg()", "dare(density=1.0)", "core_space(rule=fedavg())", "knots(rule=fedavg())"):
        merged = merge(deltas, WEIGHTS, space=space, rule=rule)
        close(dense(merged.adapter), whole)
        assert merged.adapter.lora == Lora(9, 9)
        assert merged.report.aggregation_error_total < 1e-7


@pytest.mark.parametrize("rule", ["ties(density=0.4)", "median()"])
def test_the_space_and_the_rule_of_that_name_agree(make, dense, rule):
    deltas = mixed(make)
    one = merge(deltas, WEIGHTS, space="core(rank=9)", rule=rule)
    two = merge(deltas, WEIGHTS, space="product(rank=9)", rule=f"core_space(rule={rule})")
    close(dense(one.adapter), dense(two.adapter))
    head = two.adapter.tensors["head.weight"]
    torch.testing.assert_close(head, merge(deltas, WEIGHTS, space="product()").adapter.tensors["head.weight"])
    assert not torch.equal(head, one.adapter.tensors["head.weight"])


def test_the_published_form_is_that_of_the_paper(make, dense):
    """Bases from the stacked factors as they came, one rank, one scaling, equal weights."""
    deltas = [make(seed, dtype=torch.float64) for seed in (1, 2, 3)]
    merged = merge(deltas, space="core(rank=9, like='paper')", rule="magmax()").adapter
    expected = {}
    for module in dense(deltas[0]):
        a = [delta.tensors[f"{module}.lora_A.weight"].numpy() for delta in deltas]
        b = [delta.tensors[f"{module}.lora_B.weight"].numpy() for delta in deltas]
        u, vh = singular(np.concatenate(b, axis=1))[0], singular(np.concatenate(a))[2]
        cores = np.stack([u.T @ left @ right @ vh.T for left, right in zip(b, a, strict=True)])
        largest = np.abs(cores).argmax(axis=0)
        expected[module] = 2 * u @ np.take_along_axis(cores, largest[None], axis=0)[0] @ vh
    close(dense(merged), expected)


def test_an_adapter_wide_rule_sees_cores_and_heads_together(make):
    deltas = [make(seed, dtype=torch.float64) for seed in (1, 2, 3)]
    merged = merge(deltas, space="core(rank=9)", rule="ties(density=0.001, scope='adapter')").adapter
    kept = sum(int(torch.linalg.matrix_rank(t, tol=1e-9)) for n, t in merged.tensors.items() if "lora_B" in n)
    assert int((merged.tensors["head.weight"] != 0).sum()) + kept <= 3


def test_adapters_of_float32_come_back_as_such(make, dense):
    exact = [make(seed, dtype=torch.float64) for seed in (1, 2, 3)]
    small = [replace(delta, tensors={n: t.float() for n, t in delta.tensors.items()}) for delta in exact]
    one = merge(small, space="core(rank=9)", rule="median()").adapter
    assert {tensor.dtype for tensor in one.tensors.values()} == {torch.float32}
    close(dense(one), dense(merge(exact, space="core(rank=9)", rule="median()").adapter), 1e-5)


def test_silos_that_say_the_same_are_returned(make, dense):
    delta = make(1, dtype=torch.float64)
    for rule in ("ties(density=1.0)", "median()", "knots(rule=median())", "cart()"):
        close(dense(merge([delta, delta], space="core()", rule=rule, names=["a", "b"]).adapter), dense(delta))


def test_silos_that_moved_nothing_change_nothing(make, dense):
    received = make(0, dtype=torch.float64)
    zero = replace(received, tensors={name: torch.zeros_like(t) for name, t in received.tensors.items()})
    for rule in ("median()", "knots()", "tsv_merge()", "iso_c()", "iso_cts()", "cart()"):
        merged = merge([zero, zero], received=received, space="core()", rule=rule, names=["a", "b"])
        close(dense(merged.adapter), dense(received))
        assert merged.report.aggregation_error_total < 1e-9


def test_matrix_rules_want_products(make):
    with pytest.raises(RuleError, match=r"tsv_merge\(\) merges the update B A .* use product\(\)"):
        merge([make(1), make(2)], rule="tsv_merge()")
    heads = [Adapter({"w": torch.randn(5, 4), "b": torch.randn(5)}) for _ in range(2)]
    merged = merge(heads, rule="iso_c()").adapter
    spectrum = torch.linalg.svdvals(merged.tensors["w"])
    torch.testing.assert_close(spectrum, spectrum.mean().expand(4))
    torch.testing.assert_close(merged.tensors["b"], (heads[0].tensors["b"] + heads[1].tensors["b"]) / 2)


@pytest.mark.parametrize("rule", ["median()", "knots()", "fedavg()", "model_stock()"])
def test_beyond_float64_is_an_error(make, rule):
    big = make(1, dtype=torch.float64)
    big = replace(big, tensors={name: 1e200 * t for name, t in big.tensors.items()})
    with pytest.raises(AdapterMismatch, match="overflows"):
        merge([big, make(2, dtype=torch.float64)], space="core()", rule=rule)


def test_a_dense_matrix_beyond_float64_is_an_error():
    big = {"w": torch.full((3, 4), 1e308, dtype=torch.float64)}
    with pytest.raises(AdapterMismatch, match="overflows: 12 of 12 values of 'w'"):
        merge([big, big], rule="iso_c(scale=4.0)", names=["a", "b"])


@pytest.mark.parametrize("text", ["core()", "core(rank=4)", "core(like='paper')"])
def test_text_round_trip(text):
    assert str(parse_space(text)) == text
    assert parse_space(str(parse_space(text))) == parse_space(text)


def test_bad_arguments_are_refused():
    with pytest.raises(RuleError, match="like is 'peft', expected 'paper' or None"):
        Core(like="peft")
    with pytest.raises(RuleError, match=r"core\(\): rank is 0"):
        Core(rank=0)
