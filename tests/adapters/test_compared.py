from __future__ import annotations

import pytest
import torch

from fedmerge.adapters.compared import compared
from fedmerge.errors import AdapterMismatch


def test_names_are_used_in_sentences(make):
    with pytest.raises(AdapterMismatch, match="north lacks"):
        compared([make(1), {"x": torch.zeros(1)}], names=["south", "north"])


def test_settings_come_from_whoever_has_them(make):
    received, delta = make(0), make(1)
    together = compared([delta.tensors], received)
    assert together.in_products
    assert together.deltas[0].lora == received.lora


def test_without_pairs_everything_is_compared_as_it_is():
    together = compared([{"b": torch.ones(2), "a": torch.ones(1)}])
    assert (together.in_products, together.others) == (False, ("a", "b"))
