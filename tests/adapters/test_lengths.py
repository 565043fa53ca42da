from __future__ import annotations

import pytest
import torch

from fedmerge.adapters.geometry import compare
from fedmerge.adapters.lengths import relative_length, relative_lengths, weight_norms


def test_ratios_to_the_weights_by_mapping_or_callable(make, dense):
    deltas = [make(1), make(2)]
    layers = compare(deltas).layers
    modules = [name for name in layers if name != "head.weight"]
    base = {name: torch.full((10, 12), 0.5, dtype=torch.bfloat16) for name in modules}
    norms = weight_norms(layers, base)
    assert norms == pytest.approx(dict.fromkeys(modules, 0.5 * 120**0.5))
    assert weight_norms(layers, base.get) == norms
    found = relative_lengths(layers, norms)
    assert found["head.weight"] is None
    for place, delta in enumerate(deltas):
        for name, update in dense(delta).items():
            assert found[name][place] == pytest.approx((update**2).sum() ** 0.5 / norms[name])


def test_the_whole_leaves_out_what_the_base_has_not():
    layers = {"q": (3.0, 0.0), "k": (4.0, 1.0), "head": (7.0, 7.0)}
    assert relative_length(layers, {"q": 6.0, "k": 8.0}) == (0.5, 0.1)
    assert relative_length(layers, {}) is None


def test_zero_weights_have_no_ratio():
    assert weight_norms(["q"], {"q": torch.zeros(2, 2)}) == {}
