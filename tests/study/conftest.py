"""Finished runs of three tiny silos, made once; and a scorer without a bench."""

from __future__ import annotations

import shutil
from collections.abc import Callable
from pathlib import Path

import pytest
import torch

from fedmerge.adapters import Adapter
from fedmerge.adapters.connectivity import Point
from fedmerge.config import Config, defaults, read_config
from fedmerge.engine.local import run_local

Changed = Callable[..., Config]


@pytest.fixture(scope="session")
def tiny(tiny_base: Path, tiny_rows: Path) -> Changed:
    """tiny("out", train__steps=4): a run-config of seconds that keeps its deltas."""

    def make(output: str | Path, **changes: str | int | float | bool) -> Config:
        flat = defaults() | {
            "run.name": "tiny", "run.rounds": 1, "run.record": True, "run.output": str(output),
            "run.baselines": "alone", "strategy.shadows": "", "base.model": str(tiny_base),
            "data.source": str(tiny_rows), "data.partition": "by(column='topic')", "data.validation": 0.2,
            "data.seed": 0, "lora.rank": 2, "lora.alpha": 4.0, "train.steps": 3, "train.batch-size": 4,
            "train.max-length": 32, "train.autocast": "none", "train.device": "cpu", "engine.workers": 1,
        }  # fmt: skip
        return read_config(flat | {key.replace("__", ".").replace("_", "-"): v for key, v in changes.items()})

    return make


@pytest.fixture(scope="session")
def made(tiny: Changed, tmp_path_factory: pytest.TempPathFactory) -> Callable[..., Path]:
    """made("one", run__seed=3): the folder of a run with these keys, made when first asked for."""
    home, known = tmp_path_factory.mktemp("runs"), {}

    def make(name: str, **changes: str | int | float | bool) -> Path:
        if name not in known:
            known[name] = run_local(tiny(home / name, **changes))
        return known[name]

    return make


@pytest.fixture
def copied(made: Callable[..., Path], tmp_path: Path) -> Callable[..., Path]:
    """copied("one"): a copy of such a run, to be damaged."""

    def make(name: str, **changes: str | int | float | bool) -> Path:
        return Path(shutil.copytree(made(name, **changes), tmp_path / f"copy-of-{name}"))

    return make


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
