from __future__ import annotations

import json
from dataclasses import asdict

import numpy as np
import pytest
import torch

from fedmerge.adapters.adapter import Lora
from fedmerge.adapters.geometry import compare
from fedmerge.errors import AdapterMismatch, RuleError


def oracle(dense, received, deltas):
    """Each client's true update as one long vector."""
    before = dense(received) if received else None
    rows = []
    for delta in deltas:
        after = dense(delta, plus=received)
        parts = [after[m] - (before[m] if before else 0) for m in sorted(after)]
        rows.append(
            np.concatenate([part.ravel() for part in parts] + [delta.tensors["head.weight"].double().ravel()])
        )
    return np.stack(rows)


@pytest.mark.parametrize("with_received", [False, True])
def test_norms_cosines_and_influence_are_those_of_the_dense_updates(make, dense, with_received):
    received = make(0) if with_received else None
    deltas, weights = [make(seed, scale=0.5) for seed in (1, 2, 3)], np.array([3.0, 1.0, 2.0])
    found = compare(deltas, weights, received)
    rows = oracle(dense, received, deltas)
    norms = np.linalg.norm(rows, axis=1)
    np.testing.assert_allclose(found.norms, norms)
    np.testing.assert_allclose(found.cosines, rows @ rows.T / np.outer(norms, norms), atol=1e-12)
    shares = weights / weights.sum()
    mean = shares @ rows
    np.testing.assert_allclose(found.influence, shares * (rows @ mean) / (mean @ mean))
    assert sum(found.influence) == pytest.approx(1)
    assert found.leader == int(np.argmax(found.influence))
    assert found.in_products


def test_it_does_not_depend_on_how_an_update_was_factored(make):
    one, two = make(1), make(2)
    turned = {n: t * (2 if "lora_A" in n else 0.5 if "lora_B" in n else 1) for n, t in two.tensors.items()}
    np.testing.assert_allclose(
        compare([one, two]).cosines, compare([one, type(two)(turned, two.lora)]).cosines
    )


def test_the_scaling_counts_in_layers_and_mixed_ranks_are_fine(make):
    deltas = [make(1, lora=Lora(2, 4)), make(2, lora=Lora(3, 3))]
    found = compare(deltas)
    assert found.layers["head.weight"][0] == pytest.approx(float(deltas[0].tensors["head.weight"].norm()))
    assert 0 <= found.sign_conflict <= 1
    doubled = compare([type(deltas[0])(deltas[0].tensors, Lora(2, 8)), deltas[1]])
    assert doubled.layers["base_model.model.layers.0.q_proj"][0] == pytest.approx(
        2 * found.layers["base_model.model.layers.0.q_proj"][0]
    )


def test_no_common_shape_gives_no_sign_conflict(make):
    deltas = [make(1, lora=Lora(2, 4), head=False), make(2, head=False)]
    assert compare(deltas).sign_conflict is None


def test_plain_dicts_are_compared_as_factors(make):
    found = compare([make(1).tensors, make(2).tensors])
    assert not found.in_products
    assert "head.weight" in found.layers
    flat = [torch.cat([t.double().ravel() for t in make(seed).tensors.values()]) for seed in (1, 2)]
    assert found.cosines[0][1] == pytest.approx(float(torch.nn.functional.cosine_similarity(*flat, dim=0)))


def test_opposite_clients():
    found = compare([{"x": torch.tensor([1.0, 2.0, 0.0])}, {"x": torch.tensor([-1.0, -2.0, 0.0])}])
    assert found.cosines == ((1.0, -1.0), (-1.0, 1.0))
    assert found.sign_conflict == 1.0
    assert found.leader is None
    assert found.influence == (0.0, 0.0)


def test_zero_updates_have_no_direction():
    found = compare([{"x": torch.zeros(2)}, {"x": torch.ones(2)}])
    assert found.cosines == ((0.0, 0.0), (0.0, pytest.approx(1.0)))
    assert compare([{"x": torch.zeros(2)}]).sign_conflict == 0.0


def test_the_result_is_json(make):
    json.dumps(asdict(compare([make(1), make(2)])))


def test_what_does_not_belong_together_is_refused(make):
    with pytest.raises(AdapterMismatch, match="no delta"):
        compare([])
    with pytest.raises(AdapterMismatch, match="delta 1 lacks"):
        compare([make(1), {"x": torch.zeros(1)}])
    with pytest.raises(AdapterMismatch, match="can't be compared"):
        compare([make(1)], received=make(0, lora=Lora(3, 9)))
    with pytest.raises(RuleError, match="weights"):
        compare([make(1)], [-1])
