"""What the local engine itself costs: time before round 1, and time of a round, with silos that do nothing.

    python benchmarks/engine.py [--rounds 50] [--seeds 0,1,2] [--workers 1,2]

*Before round 1* counts from the call of `run_local` to the first train message: rows read and shared out,
base loaded and hashed, workers forked, query, first adapter, run folder with config and environment. Imports
are not counted: an unmeasured run before does them, and warms the disk cache.

*A round* counts from its first train message to that of the next: 8 messages and replies through Flower's
API (encoded, pickled to and from workers where there are some, checked, decoded), merge, events, metrics, and
the round's files flushed to the disk. Training and scoring are not counted: these silos reply at once, with
the same small random delta each round. Most of a round is paid per tensor, so it is measured for an adapter
of 2 tensors and for the built-in base's whole adapter of 42.
"""

from __future__ import annotations

import argparse
import itertools
import os
import platform
import shutil
import statistics
import tempfile
import time
import zlib
from collections.abc import Mapping, Sequence
from importlib.metadata import version
from pathlib import Path
from typing import ClassVar

import torch

from fedmerge import client_app
from fedmerge.adapters import Adapter
from fedmerge.config import Config, defaults, read_config
from fedmerge.engine.local import run_local
from fedmerge.server.observer import Silent
from fedmerge.silo import worker
from fedmerge.silo.worker import Order, Trained, Worker

SILOS = 8
ADAPTERS = {"small": ("q_proj", "top 1"), "whole": ("all-linear", "all")}
"""Target modules and layers: 2 and 42 tensors."""


class IdleWorker(Worker):
    """Loads and answers as a worker does, but neither trains nor scores."""

    _deltas: ClassVar[dict[tuple[str, int], dict[str, torch.Tensor]]] = {}

    def train(self, broadcast: Adapter, order: Order) -> Trained:
        """A small random delta, drawn once for each silo: to draw it is none of the engine's work."""
        key = (order.silo, len(broadcast.tensors))
        if key not in self._deltas:
            generator = torch.Generator().manual_seed(zlib.crc32(order.silo.encode()))
            self._deltas[key] = {
                name: torch.randn(t.shape, generator=generator) * 1e-4
                for name, t in broadcast.tensors.items()
            }
        delta = Adapter(self._deltas[key], broadcast.lora)
        return Trained(delta, 100, {"received/validation/loss": 1.0})

    def evaluate(self, candidates: Mapping[str, Adapter], order: Order) -> dict[str, float]:
        """The same score for everything."""
        return {f"{name}/test/loss": 1.0 for name in candidates}


class Stopwatch(Silent):
    """Notes when each round's messages go out."""

    def __init__(self) -> None:
        self.starts: list[float] = []

    def round_started(self, round: int, silos: Sequence[str]) -> None:
        """Note the time."""
        self.starts.append(time.perf_counter())


def measure(config: Config) -> tuple[float, list[float]]:
    """Seconds before round 1, and of each round but the last."""
    client_app._stations.clear()  # the base is loaded anew
    watch = Stopwatch()
    began = time.perf_counter()
    run_local(config, watch)
    return watch.starts[0] - began, [b - a for a, b in zip(watch.starts, watch.starts[1:], strict=False)]


def config_of(folder: Path, seed: int, workers: int, rounds: int, adapter: str) -> Config:
    modules, layers = ADAPTERS[adapter]
    changes = {
        "run.output": str(folder), "run.rounds": rounds, "run.seed": seed, "run.baselines": "",
        "data.partition": f"iid(silos={SILOS})", "data.silos": "", "engine.workers": workers,
        "lora.target-modules": modules, "lora.layers": layers,
        "strategy.space": "factors()", "train.device": "cpu",
    }  # fmt: skip
    return read_config(defaults() | changes)


def show(label: str, values: Sequence[float], unit: str, scale: float, limit: float) -> None:
    scaled = sorted(value * scale for value in values)
    median = statistics.median(scaled)
    verdict = "ok" if median < limit else "TOO SLOW"
    spread = f"min {scaled[0]:.1f}, max {scaled[-1]:.1f}, n {len(scaled)}"
    print(f"{label:42} median {median:6.1f} {unit} ({spread}; limit {limit:g} {unit}) {verdict}")


def machine() -> str:
    names = [line for line in Path("/proc/cpuinfo").read_text().splitlines() if line.startswith("model name")]
    cpu = names[0].partition(":")[2].strip() if names else platform.processor()
    packages = ", ".join(f"{package} {version(package)}" for package in ("torch", "flwr"))
    python = platform.python_version()
    return f"{cpu}, {os.cpu_count()} cores, {platform.system()}, Python {python}, {packages}"


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawTextHelpFormatter)
    parser.add_argument("--rounds", type=int, default=50)
    parser.add_argument("--seeds", default="0,1,2")
    parser.add_argument("--workers", default="1,2")
    asked = parser.parse_args()
    worker.Worker = IdleWorker  # type: ignore[misc]
    folder = Path(tempfile.mkdtemp(prefix="fedmerge-benchmark-"))
    try:
        measure(config_of(folder / "imports", 0, 1, 1, "whole"))
        print(machine())
        print(f"{SILOS} silos, {asked.rounds} rounds, seeds {asked.seeds}, load {os.getloadavg()[0]:.1f}")
        for workers, adapter in itertools.product(map(int, asked.workers.split(",")), ADAPTERS):
            before, rounds = [], []
            for seed in map(int, asked.seeds.split(",")):
                config = config_of(
                    folder / f"{workers}-{adapter}-{seed}", seed, workers, asked.rounds, adapter
                )
                start, each = measure(config)
                before.append(start)
                rounds += each
            show(f"before round 1, {adapter} adapter, {workers} workers", before, "s ", 1.0, 2.0)
            show(f"a round, {adapter} adapter, {workers} workers", rounds, "ms", 1000.0, 20.0)
    finally:
        shutil.rmtree(folder)


if __name__ == "__main__":
    main()
