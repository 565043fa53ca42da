from __future__ import annotations

import torch

from fedmerge.adapters.adapter import Adapter
from fedmerge.adapters.identity import content_names


def test_names_follow_contents_not_places():
    deltas = [Adapter({"x": torch.full((3000,), float(value))}) for value in range(4)]
    names = content_names(deltas)
    assert content_names(deltas[::-1]) == names[::-1]
    assert len(set(names)) == 4


def test_shape_dtype_and_name_count():
    base = torch.zeros(4)
    variants = [{"x": base}, {"y": base}, {"x": base.double()}, {"x": base.reshape(2, 2)}]
    assert len(set(content_names([Adapter(tensors) for tensors in variants]))) == 4


def test_one_value_between_the_samples_counts_in_a_tie():
    one = torch.zeros(100_000)
    two = one.clone()
    two[77] = 1.0
    assert len(set(content_names([Adapter({"x": one}), Adapter({"x": two})]))) == 2
