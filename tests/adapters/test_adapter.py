from __future__ import annotations

import math

import pytest
import torch

from fedmerge.adapters.adapter import Adapter, Lora, rounded, working_dtype
from fedmerge.adapters.pairs import Pair, split_names
from fedmerge.errors import AdapterMismatch, ConfigError


def test_scaling_of_lora_and_rslora():
    assert Lora(16, 32).scaling == 2.0
    assert Lora(16, 32, rslora=True).scaling == 8.0


@pytest.mark.parametrize("rslora", [False, True])
def test_another_rank_keeps_the_scaling(rslora):
    lora = Lora(8, 16, rslora=rslora)
    assert lora.of_rank(8) is lora
    assert math.isclose(lora.of_rank(3).scaling, lora.scaling)


@pytest.mark.parametrize("rank", [0, -1, 2.0, True, "8", None])
def test_rank_is_checked_when_made(rank):
    with pytest.raises(ConfigError, match="rank is"):
        Lora(rank, 16)


@pytest.mark.parametrize("alpha", [0, -1.0, math.nan, math.inf, "16", True, None])
def test_alpha_is_checked_when_made(alpha):
    with pytest.raises(ConfigError, match="alpha is"):
        Lora(8, alpha)


@pytest.mark.parametrize("tensors", [{"x": [1.0]}, {1: torch.zeros(1)}, [torch.zeros(1)]])
def test_an_adapter_holds_named_tensors(tensors):
    with pytest.raises(AdapterMismatch):
        Adapter(tensors)


def test_a_large_adapter_prints_in_one_line():
    assert repr(Adapter({"x": torch.zeros(1000)}, Lora(2, 4))).startswith(
        "Adapter(1 tensors, 1000 parameters"
    )


@pytest.mark.parametrize("dtype", [torch.bool, torch.complex64])
def test_what_has_no_mean_is_refused(dtype):
    with pytest.raises(AdapterMismatch, match="expected real numbers"):
        working_dtype(dtype)


def test_whole_numbers_are_rounded_not_cut():
    assert rounded(torch.tensor([1.5, 2.5, -1.7]), torch.int64).tolist() == [2, 2, -2]


def test_pairs_and_others():
    names = ["b.lora_B.weight", "head.bias", "a.lora_A.weight", "b.lora_A.weight", "a.lora_B.weight"]
    assert split_names(names) == ((Pair("a"), Pair("b")), ("head.bias",))


@pytest.mark.parametrize("name", ["q.lora_A.weight", "q.lora_B.weight"])
def test_a_factor_without_the_other_is_refused(name):
    with pytest.raises(AdapterMismatch, match="without its other factor"):
        split_names([name])


def test_factors_that_do_not_fit_are_refused():
    tensors = {"q.lora_A.weight": torch.zeros(2, 3), "q.lora_B.weight": torch.zeros(4, 3)}
    with pytest.raises(AdapterMismatch, match=r"\(2, 3\) and B \(4, 3\)"):
        Pair("q").factors(tensors)
