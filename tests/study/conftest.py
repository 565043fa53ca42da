"""A second base of the same shape, adapters trained on either, and a scorer without a bench."""

from __future__ import annotations

from collections.abc import Callable
from pathlib import Path

import pytest
import torch

from fedmerge.adapters import Adapter
from fedmerge.adapters.connectivity import Point


@pytest.fixture(scope="session")
def other_base(tiny_base: Path, tmp_path_factory: pytest.TempPathFactory) -> Path:
    """The tiny base's shape and tokenizer with other random weights."""
    import shutil

    from transformers import AutoConfig, LlamaForCausalLM

    folder = tmp_path_factory.mktemp("other") / "base"
    shutil.copytree(tiny_base, folder)
    torch.manual_seed(1)
    LlamaForCausalLM(AutoConfig.from_pretrained(tiny_base)).save_pretrained(folder)
    return folder


class Quadratic:
    """A loss that is a bowl around one point: `|x - centre|^2 + floor`, for adapters of one tensor x."""

    metric = "loss"
    lora = None

    def __init__(self, centre: list[float], floor: float = 1.0) -> None:
        self.centre, self.floor, self.calls = torch.tensor(centre), floor, 0

    def __call__(self, adapter: Adapter) -> Point:
        self.calls += 1
        loss = float((adapter.tensors["x"] - self.centre).square().sum()) + self.floor
        return Point(loss, loss)


@pytest.fixture
def bowl() -> Callable[..., Quadratic]:
    return Quadratic
