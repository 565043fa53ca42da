from __future__ import annotations

import numpy as np
import pytest
import torch

from fedmerge.adapters import sign_conflict as module
from fedmerge.adapters.adapter import Lora
from fedmerge.adapters.sign_conflict import sign_conflict
from fedmerge.errors import AdapterMismatch, RuleError


def dense_rows(dense, deltas, received):
    """Each tensor's values by client, float32: `(clients, coordinates)`."""
    before = dense(received) if received else None
    after = [dense(delta, plus=received) for delta in deltas]
    for name in sorted(after[0]):
        yield np.stack([(each[name] - (before[name] if before else 0)).ravel() for each in after])
    yield np.stack([delta.tensors["head.weight"].numpy().ravel() for delta in deltas])


def counted(tensors, density):
    """The definition, coordinate by coordinate."""
    moved = shared = against = 0
    chance = minority = mass = 0.0
    for rows in map(np.copy, tensors):
        keep = max(1, int(density * rows.shape[1]))
        for row in rows:
            row[np.argsort(-np.abs(row))[keep:]] = 0
        for column in rows.T:
            k = int((column != 0).sum())
            moved += k > 0
            mass += np.abs(column).sum()
            minority += min(column[column > 0].sum(), -column[column < 0].sum())
            if k >= 2:
                shared += 1
                against += (column > 0).any() and (column < 0).any()
                chance += 1 - 2 ** (1 - k)
    return moved, shared / moved, against / shared, chance / shared, minority / mass


@pytest.mark.parametrize("with_received", [False, True])
@pytest.mark.parametrize("density", [1.0, 0.3])
def test_the_signs_are_those_of_the_true_updates(make, dense, with_received, density):
    received = make(0) if with_received else None
    deltas = [make(seed, scale=0.5) for seed in (1, 2, 3)]
    found = sign_conflict(deltas, received, density)
    expected = counted(dense_rows(dense, deltas, received), density)
    np.testing.assert_allclose(
        (found.moved, found.shared, found.against, found.chance, found.minority), expected, rtol=1e-6
    )
    assert found.density == density


@pytest.mark.parametrize("density", [1.0, 0.3])
def test_tiles_change_nothing(make, monkeypatch, density):
    deltas = [make(seed) for seed in (1, 2)]
    whole = sign_conflict(deltas, density=density)
    monkeypatch.setattr(module, "TILE_VALUES", 1)
    monkeypatch.setattr(module, "ROWS", 2)
    tiled = sign_conflict(deltas, density=density)
    assert (tiled.moved, tiled.shared, tiled.against) == (whole.moved, whole.shared, whole.against)
    assert tiled.minority == pytest.approx(whole.minority)


def test_factors_are_counted_where_plain_dicts_are_given(make):
    one, two = make(1), make(2)
    found = sign_conflict([one.tensors, two.tensors])
    assert found.moved == one.parameters
    products = 10 * 12 + 9 * 7 + 4 * 5
    assert sign_conflict([one, two]).moved == products


def test_it_does_not_depend_on_how_an_update_was_factored(make):
    one, two = make(1, lora=Lora(2, 4)), make(2)
    turned = {n: t * (-2 if "lora_A" in n else -0.5 if "lora_B" in n else 1) for n, t in two.tensors.items()}
    assert sign_conflict([one, two], density=0.4) == sign_conflict(
        [one, type(two)(turned, two.lora)], density=0.4
    )


def test_coins_conflict_as_chance_says():
    draw = torch.Generator().manual_seed(0)
    deltas = [{"x": torch.randn(100_000, generator=draw)} for _ in range(5)]
    for density in (1.0, 0.2):
        found = sign_conflict(deltas, density=density)
        assert found.against == pytest.approx(found.chance, abs=0.01)
    assert sign_conflict(deltas).chance == 1 - 2**-4


def test_agreement_opposition_and_silence():
    up = {"x": torch.tensor([1.0, 2.0, 0.0])}
    down = {"x": -up["x"]}
    assert sign_conflict([up, up]).against == 0
    assert sign_conflict([up, down]).against == 1
    assert sign_conflict([up, down]).minority == 0.5
    silent = sign_conflict([{"x": torch.zeros(3)}, {"x": torch.zeros(3)}], density=0.5)
    assert (silent.moved, silent.shared, silent.against, silent.minority) == (0, 0, 0, 0)
    assert sign_conflict([up, {"x": torch.zeros(3)}]).shared == 0


def test_what_can_not_be_counted_is_refused(make):
    with pytest.raises(RuleError, match="density"):
        sign_conflict([make(1)], density=20)
    with pytest.raises(AdapterMismatch, match="no delta"):
        sign_conflict([])
