"""PEFT's modules_to_save are whole weights: only their difference to the base is a delta."""

from __future__ import annotations

import json

import pytest
import torch

import fedmerge
from fedmerge.adapters import Adapter, Lora
from fedmerge.checkpoints import less_base, plus_base, wanting_base
from fedmerge.checkpoints.whole_weights import place_in
from fedmerge.errors import AdapterMismatch
from fedmerge.rules import fedavg, parse_rule, task_arithmetic, ties
from fedmerge.wire.checkpoint import open_checkpoint

from .making import save

HEAD = "base_model.model.score.weight"
PAIR = "base_model.model.model.layers.0.q_proj."


def headed(value: float, *, own: bool = False) -> Adapter:
    tensors = {
        PAIR + "lora_A.weight": torch.ones(2, 3),
        PAIR + "lora_B.weight": torch.ones(4, 2),
        ("head.weight" if own else HEAD): torch.full((2, 4), value),
    }
    return Adapter(tensors, Lora(2, 4), {"modules_to_save": json.dumps(["score"])})


@pytest.fixture
def base(tmp_path):
    return open_checkpoint(save(tmp_path / "base", {"score.weight": torch.full((2, 4), 1.0)}))


def test_which_rules_want_the_base():
    adapter = headed(1.0)
    assert wanting_base(adapter, fedavg(), [3, 1]) == []
    assert (
        wanting_base(adapter, parse_rule("iso_c()"), [3, 1]) == []
    )  # the mean of what is no matrix of a pair
    assert wanting_base(adapter, ties(density=0.5), [3, 1]) == [HEAD]
    assert wanting_base(adapter, task_arithmetic(), [3, 1]) == [HEAD]
    assert wanting_base(headed(1.0, own=True), ties(density=0.5), [3, 1]) == []  # it starts from zero


def test_the_difference_is_merged_and_added_again(base):
    adapters = [headed(1.5), headed(1.25)]
    deltas = less_base(adapters, [HEAD], base)
    assert torch.equal(deltas[0].tensors[HEAD], torch.full((2, 4), 0.5))
    assert torch.equal(deltas[0].tensors[PAIR + "lora_A.weight"], torch.ones(2, 3))
    merged = fedmerge.merge(deltas, rule="task_arithmetic(scale=1.0)", space="product()").adapter
    back = plus_base(merged, {HEAD: torch.bfloat16}, base)
    assert torch.equal(back.tensors[HEAD], torch.full((2, 4), 1.75, dtype=torch.bfloat16))


def test_a_base_without_the_tensor_or_with_another_shape(base, tmp_path):
    with pytest.raises(AdapterMismatch, match=r"score\.weight' has shape \(2, 4\), the base has \(3, 4\)"):
        other = open_checkpoint(save(tmp_path / "other", {"score.weight": torch.ones(3, 4)}))
        less_base([headed(1.0)], [HEAD], other)
    with pytest.raises(AdapterMismatch, match="the base has no tensor of that name"):
        less_base([headed(1.0)], [HEAD], open_checkpoint(save(tmp_path / "none", {"x": torch.ones(3)})))


def test_a_place_may_have_a_longer_or_a_shorter_prefix(tmp_path):
    tensors = {"model.layers.0.q.weight": torch.ones(1), "model.layers.0.k.weight": torch.ones(1)}
    base = open_checkpoint(save(tmp_path / "base", tensors))
    for name in (
        "base_model.model.model.layers.0.q.weight",
        "base_model.model.layers.0.q.weight",
        "x.model.layers.0.q.weight",
    ):
        assert place_in(base, name) == "model.layers.0.q.weight"
    assert place_in(base, "base_model.model.weight") is None
