from __future__ import annotations

import numpy as np
import pytest
import torch

from fedmerge.adapters.adapter import Adapter, Lora
from fedmerge.adapters.blend import blend
from fedmerge.errors import AdapterMismatch


def test_a_point_is_the_sum_of_the_true_updates(make, dense):
    adapters = [make(1), make(2, lora=Lora(2, 8)), make(3, lora=Lora(4, 4, rslora=True))]
    coefficients = [0.25, -1.5, 0.75]
    point = blend(adapters, coefficients)
    assert point.lora.rank == 9
    assert point.lora.scaling == pytest.approx(adapters[0].lora.scaling)
    each = [dense(adapter) for adapter in adapters]
    for name, product in dense(point).items():
        expected = sum(c * one[name] for c, one in zip(coefficients, each, strict=True))
        np.testing.assert_allclose(product, expected, atol=1e-5)
    head = sum(c * one.tensors["head.weight"] for c, one in zip(coefficients, adapters, strict=True))
    torch.testing.assert_close(point.tensors["head.weight"], head)


def test_ends_are_the_adapters_themselves(make, same_bits):
    one, two = make(1), make(2)
    assert same_bits(blend([one, two], [0, 1]), Adapter(dict(sorted(two.tensors.items())), two.lora))
    assert blend([one, two], [0, 1]).lora == two.lora


def test_no_coefficients_change_nothing(make):
    point = blend([make(1), make(2)], [0, 0])
    assert point.lora == make(1).lora
    assert not any(t.any() for name, t in point.tensors.items() if "lora_A" not in name)


def test_a_scaling_of_ones_own_choice(make, dense):
    one = make(1)
    turned = blend([one], [1.0], Lora(8, 24))
    assert (turned.lora.rank, turned.lora.scaling) == (3, 3.0)
    for name, product in dense(turned).items():
        np.testing.assert_allclose(product, dense(one)[name], rtol=1e-5)


def test_low_precision_does_not_eat_the_coefficient(make, dense):
    one = make(1, dtype=torch.bfloat16)
    point = blend([one], [1 / 3])
    assert {tensor.dtype for tensor in point.tensors.values()} == {torch.float32}
    for name, product in dense(point).items():
        np.testing.assert_allclose(3 * product, dense(one)[name], rtol=1e-5)


def test_what_can_not_be_blended(make):
    with pytest.raises(AdapterMismatch, match="no adapter"):
        blend([], [])
    with pytest.raises(AdapterMismatch, match="LoRA settings"):
        blend([Adapter(make(1).tensors)], [1.0])
    assert blend([Adapter({"x": torch.ones(2)})], [0.5]).tensors["x"].tolist() == [0.5, 0.5]
