"""Many modules at once give what each gives by itself."""

from __future__ import annotations

import pytest
import torch
from torch import Tensor

from fedmerge import Adapter, Lora
from fedmerge.adapters import together
from fedmerge.adapters.lowrank import orthonormal, truncate_between
from fedmerge.adapters.spaces.layers import Layers
from fedmerge.adapters.together import truncate_together, weighted_together
from fedmerge.adapters.updates import Updates

PRECISION = 1e-7


def updates(
    seed: int, *, received: int = 4, shape: tuple[int, int] = (60, 40), scale: float = 0.1
) -> Updates:
    generator = torch.Generator().manual_seed(seed)
    ranks = [received, 4, 4, 4]
    left = torch.randn(shape[0], sum(ranks), generator=generator, dtype=torch.float64)
    right = torch.randn(sum(ranks), shape[1], generator=generator, dtype=torch.float64)
    left[:, received:] *= scale
    right[received:] *= scale
    return Updates(f"m{seed}", (left, right), ranks, (2.0, 2.0, 2.0))


def dense(own: Updates, coefficients: Tensor) -> Tensor:
    left, right = own.stacked
    return left @ own.core(coefficients.tolist()) @ right


def alone(own: Updates, coefficients: Tensor, rank: int):
    tall, wide = orthonormal(own.stacked[0]), orthonormal(own.stacked[1].T)
    return truncate_between(tall, own.core(coefficients.tolist()), wide, rank, PRECISION)


@pytest.mark.parametrize("received", [0, 4])
@pytest.mark.parametrize("rank", [1, 4, 12, 30])
def test_same_as_one_by_one(received, rank):
    modules = [updates(seed, received=received) for seed in range(5)]
    shares = [torch.rand(3, dtype=torch.float64) + 0.1 for _ in modules]
    found = truncate_together(modules, shares, rank, [PRECISION] * 5)
    for own, coefficients, result in zip(modules, shares, found, strict=True):
        assert result is not None
        expected, low = alone(own, coefficients, rank), result.low
        torch.testing.assert_close(low.values, expected.values, rtol=1e-10, atol=0)
        torch.testing.assert_close(
            low.left @ torch.diag(low.values) @ low.right,
            expected.left @ torch.diag(expected.values) @ expected.right,
            rtol=1e-8, atol=1e-9,
        )  # fmt: skip
        torch.testing.assert_close(low.left, expected.left, rtol=1e-6, atol=1e-7)  # signs too
        assert low.energy == pytest.approx(expected.energy, rel=1e-10)
        assert low.discarded == pytest.approx(expected.discarded, rel=1e-8, abs=1e-9 * low.energy)
        update = dense(own, coefficients)
        if received:
            update = update - 2.0 * own.received[1] @ own.received[0]
        assert result.step == pytest.approx(float(update.square().sum()), rel=1e-9)


def test_what_would_lose_digits_is_left_out():
    sound, dead, dependent, huge = (updates(seed) for seed in range(4))
    dead.stacked[0][:, 5] = 0
    dependent.stacked[1][6] = dependent.stacked[1][7]
    huge.stacked[0].mul_(1e200)
    ones = torch.ones(3, dtype=torch.float64)
    found = truncate_together([sound, dead, dependent, huge], [ones] * 4, 4, [PRECISION] * 4)
    assert [result is None for result in found] == [False, True, True, True]
    (zero,) = truncate_together([updates(0, received=0)], [ones * 0], 4, [PRECISION])
    assert zero is None


def test_groups_by_shape_and_size(monkeypatch):
    made = {f"m{seed}": updates(seed, shape=(60, 40) if seed % 2 else (30, 50)) for seed in range(7)}
    shares = {name: torch.full((3,), 1 / 3, dtype=torch.float64) for name in made}
    whole = weighted_together(made, made.__getitem__, shares, 4, lambda name: PRECISION)
    monkeypatch.setattr(together, "GROUP_BYTES", 1)
    single = weighted_together(made, made.__getitem__, shares, 4, lambda name: PRECISION)
    assert set(whole) == set(single) == set(made)
    for name in made:
        torch.testing.assert_close(whole[name].low.values, single[name].low.values, rtol=1e-12, atol=0)


def test_layers_of_adapters_as_each_layer_by_itself():
    """What `product()` does on a GPU, on the CPU."""
    generator = torch.Generator().manual_seed(0)
    shapes = {
        f"m{n}.lora_{side}.weight": (4, 30) if side == "A" else (50, 4) for n in range(3) for side in "AB"
    }

    def adapter(scale: float) -> Adapter:
        tensors = {name: scale * torch.randn(shape, generator=generator) for name, shape in shapes.items()}
        return Adapter(tensors, Lora(rank=4, alpha=8.0))

    layers = Layers(adapter(1.0), [adapter(0.1) for _ in range(3)], torch.device("cpu"))
    shares = dict.fromkeys(layers.pairs, torch.tensor([0.5, 0.2, 0.3], dtype=torch.float64))
    found = weighted_together(layers.pairs, layers.updates, shares, 4, layers.precision)
    assert set(found) == set(layers.pairs)
    for name, own in found.items():
        expected = layers.weighted(name, shares[name], 4)
        torch.testing.assert_close(own.low.left, expected.low.left, rtol=1e-7, atol=1e-9)
        assert own.step == pytest.approx(expected.step, rel=1e-9)
