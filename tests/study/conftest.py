"""A scorer without a bench."""

from __future__ import annotations

from collections.abc import Callable

import pytest
import torch

from fedmerge.adapters import Adapter
from fedmerge.adapters.connectivity import Point


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
