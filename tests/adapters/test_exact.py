"""The spaces that keep the merged update exactly: stacked() and residual()."""

from __future__ import annotations

from dataclasses import replace

import numpy as np
import pytest
import torch

from fedmerge.adapters.adapter import Lora
from fedmerge.adapters.merge import merge
from fedmerge.adapters.spaces import Residual, parse_space
from fedmerge.errors import AdapterMismatch, RuleError
from fedmerge.rules import by_name, fedavg, median, task_arithmetic

WEIGHTS = [5.0, 0.5, 2.0]
SHARES = np.array(WEIGHTS) / sum(WEIGHTS)
Q = "base_model.model.layers.0.q_proj"


def close(given, expected, tolerance=1e-10):
    for module, matrix in expected.items():
        np.testing.assert_allclose(given[module], matrix, atol=tolerance * np.abs(matrix).max())


def merged_product(dense, deltas, coefficients, received=None):
    before = dense(received) if received else dict.fromkeys(dense(deltas[0]), 0.0)
    return {
        module: start
        + sum(
            c * (dense(d, plus=received)[module] - start) for c, d in zip(coefficients, deltas, strict=True)
        )
        for module, start in before.items()
    }


@pytest.mark.parametrize("start", [False, True])
@pytest.mark.parametrize("space", ["stacked()", "residual()"])
@pytest.mark.parametrize(
    "case",
    [("fedavg()", SHARES), ("task_arithmetic(scale=0.7)", 0.7 * 3 * SHARES), ("uniform()", np.ones(3) / 3)],
)
def test_nothing_is_lost(make, dense, start, space, case):
    rule, coefficients = case
    received = make(0, dtype=torch.float64) if start else None
    deltas = [make(seed, scale=0.4, dtype=torch.float64) for seed in (1, 2, 3)]
    merged = merge(deltas, WEIGHTS, received=received, space=space, rule=rule)
    close(dense(merged.adapter), merged_product(dense, deltas, coefficients, received))
    factors = merge(deltas, WEIGHTS, received=received, rule=rule).adapter
    torch.testing.assert_close(merged.adapter.tensors["head.weight"], factors.tensors["head.weight"])
    assert merged.adapter.lora.scaling == 2.0
    assert len(merged.adapter.tensors[f"{Q}.lora_A.weight"]) == merged.rank == merged.adapter.lora.rank
    assert merged.delta is None
    assert merged.report.aggregation_error_total < 1e-8
    assert merged.report.discarded_total < 1e-16
    exact = merge(deltas, WEIGHTS, received=received, space="product(rank=12)", rule=rule).report
    for module, rank in exact.effective_rank.items():
        np.testing.assert_allclose(merged.report.effective_rank[module], rank, rtol=1e-6)


def test_stacked_is_a_concatenation(make):
    """FLoRA: B side by side, A below one another, the weights in A."""
    deltas = [make(seed, dtype=torch.float64) for seed in (1, 2, 3)]
    merged = merge(deltas, WEIGHTS, space="stacked()", names=["a", "b", "c"])
    a, b = f"{Q}.lora_A.weight", f"{Q}.lora_B.weight"
    assert torch.equal(merged.adapter.tensors[b], torch.cat([d.tensors[b] for d in deltas], dim=1))
    stacked = torch.cat([share * d.tensors[a] for share, d in zip(SHARES, deltas, strict=True)])
    torch.testing.assert_close(merged.adapter.tensors[a], stacked)
    assert merged.adapter.lora == Lora(9, 18)


def test_stacked_joins_ranks_and_scalings(make, dense):
    loras = [Lora(2, 6), Lora(4, 4), Lora(3, 5, rslora=True)]
    deltas = [make(seed, lora=lora, dtype=torch.float64) for seed, lora in enumerate(loras)]
    merged = merge(deltas, WEIGHTS, space="stacked()")
    close(dense(merged.adapter), merged_product(dense, deltas, SHARES))
    assert merged.adapter.lora == Lora(9, 9)


@pytest.mark.parametrize("start", [False, True])
def test_residual_begins_with_the_mean_of_the_factors(make, start):
    received = make(0, dtype=torch.float64) if start else None
    deltas = [make(seed, dtype=torch.float64) for seed in (1, 2, 3)]
    merged = merge(deltas, WEIGHTS, received=received, space="residual()")
    mean = merge(deltas, WEIGHTS, received=received).adapter
    torch.testing.assert_close(
        merged.adapter.tensors[f"{Q}.lora_A.weight"][:3], mean.tensors[f"{Q}.lora_A.weight"]
    )
    torch.testing.assert_close(
        merged.adapter.tensors[f"{Q}.lora_B.weight"][:, :3], mean.tensors[f"{Q}.lora_B.weight"]
    )
    assert merged.rank == 9  # 3 of the mean, (3 - 1) * 3 of the rest
    assert (
        merge(deltas, received=received, space="residual()", rule="task_arithmetic()").rank == 12 + 3 * start
    )


def test_a_small_rest_is_the_best_of_its_rank(make, dense, truncated):
    deltas = [make(seed, dtype=torch.float64) for seed in (1, 2, 3)]
    merged = merge(deltas, WEIGHTS, space="residual(rank=2)")
    mean = dense(merge(deltas, WEIGHTS).adapter)
    whole = merged_product(dense, deltas, SHARES)
    expected = {module: mean[module] + truncated(whole[module] - mean[module], 2) for module in whole}
    close(dense(merged.adapter), expected)
    for module, matrix in whole.items():
        error = np.linalg.norm(expected[module] - matrix) / np.linalg.norm(matrix)
        np.testing.assert_allclose(merged.report.aggregation_error[module], error, rtol=1e-7)
        spectrum = np.linalg.svd(expected[module])[1][:5]
        parts = spectrum / spectrum.sum()
        effective = np.exp(-(parts * np.log(parts)).sum())
        np.testing.assert_allclose(merged.report.effective_rank[module], effective, rtol=1e-7)


def test_a_single_silo_has_no_rest(make, dense, same_bits):
    delta = make(1)
    merged = merge([delta], space="residual()")
    assert merged.adapter.lora == delta.lora
    assert same_bits(replace(merged.adapter), delta)


def test_residual_wants_one_rank(make):
    deltas = [make(1, lora=Lora(2, 4)), make(2, lora=Lora(3, 6))]
    with pytest.raises(AdapterMismatch, match=r"rank 2 .* rank 3|rank 3 .* rank 2"):
        merge(deltas, space="residual()")


@pytest.mark.parametrize("space", ["stacked()", "residual()"])
@pytest.mark.parametrize("rule", ["ties()", "median()", "tsv_merge()", "dare()"])
def test_rules_that_look_at_entries_are_refused(make, space, rule):
    with pytest.raises(RuleError, match=rf"{space[:-2]}\(\) keeps .* {rule[:-2]}\(.* use product\(\)"):
        merge([make(1), make(2)], space=space, rule=rule)


def test_rules_by_name_are_known_module_by_module(make, dense):
    deltas = [make(seed, dtype=torch.float64) for seed in (1, 2)]
    rule = by_name({"*q_proj": task_arithmetic(), "*": fedavg()})
    merged = dense(merge(deltas, space="stacked()", rule=rule).adapter)
    total, mean = (merged_product(dense, deltas, [c, c]) for c in (1.0, 0.5))
    close(merged, {name: (total if "q_proj" in name else mean)[name] for name in mean})
    with pytest.raises(RuleError, match=r"median\(\)"):
        merge(deltas, space="stacked()", rule=by_name({"*q_proj": median(), "*": fedavg()}))


@pytest.mark.parametrize("text", ["stacked()", "residual()", "residual(rank=4)"])
def test_text_round_trip(text):
    assert str(parse_space(text)) == text
    assert parse_space(str(parse_space(text))) == parse_space(text)


def test_bad_arguments_are_refused():
    with pytest.raises(RuleError, match=r"residual\(\): rank is 0"):
        Residual(rank=0)
    with pytest.raises(RuleError, match="stacked"):
        parse_space("stacked(rank=2)")
