"""What a run has to show: its plan, its environment, the candidates, and result.json."""

from __future__ import annotations

import json
import platform
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, replace
from typing import Any, Protocol

import torch

from fedmerge.adapters import Adapter
from fedmerge.client_app import installed
from fedmerge.config import Config
from fedmerge.server.report import RoundReport
from fedmerge.server.scores import HIGHER_IS_BETTER
from fedmerge.server.strategy import MergeStrategy
from fedmerge.server_app.errands import Traffic
from fedmerge.server_app.muster import Muster
from fedmerge.server_app.scoring import MERGED, Scores

BASE = "base"
_PACKAGES = ("fedmerge", "flwr", "torch", "transformers", "peft", "safetensors", "numpy")
_TASK_TYPES = {"causal-lm": "CAUSAL_LM", "classification": "FEATURE_EXTRACTION"}


def environment(config: Config, silos: Muster) -> dict[str, Any]:
    """What can change bits beside the run-config, for environment.json."""
    return {
        "python": platform.python_version(),
        "machine": platform.machine(),
        "system": platform.system(),
        "versions": installed(_PACKAGES),
        "threads": config.silo.train.threads,
        "cuda": torch.version.cuda or "",
        "gpu": torch.cuda.get_device_name() if torch.cuda.is_available() else "",
        "fingerprint": silos.fingerprint,
        "nodes": silos.nodes,
    }


def plan(config: Config, silos: Muster, initial: Adapter) -> dict[str, Any]:
    """What the run is going to do, for observers."""
    return {
        "name": config.run.name,
        "rounds": config.run.rounds,
        "seed": config.run.seed,
        "rule": config.strategy.rule,
        "space": config.strategy.space,
        "silos": list(silos.roster.names),
        "examples": {card.name: card.examples for card in silos.roster.cards},
        "base": config.silo.base.model,
        "task": config.silo.task.kind,
        "parameters": initial.parameters,
        "baselines": list(config.run.baselines),
        "devices": sorted({str(node["device"]) for node in silos.nodes.values()}),
    }


def task_type(config: Config) -> str | None:
    """PEFT's name of the task."""
    return _TASK_TYPES.get(config.silo.task.kind)


def candidates(
    strategy: MergeStrategy, initial: Adapter, baselines: Mapping[str, Adapter]
) -> dict[str, Adapter]:
    """All adapters that the run ends with, by name, in reading order.

    "merged" is the last round's; "merged/<n>" that of another round, where it had the best validation scores;
    "base" is the adapter that round 1 received, which changes nothing yet.
    """
    last = strategy.broadcast
    assert last is not None  # a round was closed, or we would not be here
    found = {BASE: initial}
    found |= {name: adapter for name, adapter in baselines.items() if name != "pooled"}
    found |= {f"shadow/{name}": adapter for name, adapter in strategy.shadow_adapters.items()}
    best = strategy.best
    if best is not None and best.round < len(strategy.rounds):
        found[f"{MERGED}/{best.round}"] = best.adapter
    return found | {MERGED: last} | {name: baselines[name] for name in ("pooled",) if name in baselines}


class Merging(Protocol):
    """What merged the rounds: a strategy, or whoever else can tell of them."""

    @property
    def rounds(self) -> Sequence[RoundReport]:
        """A report of each round."""
        ...


@dataclass(frozen=True)
class Ended:
    """A run whose candidates are scored."""

    config: Config
    silos: Muster
    strategy: Merging
    candidates: Mapping[str, Adapter]
    scores: Scores

    @property
    def kept(self) -> str:
        """Name of the candidate that is the run's result."""
        return self._best if self.config.run.keep == "best" else MERGED

    @property
    def _best(self) -> str:
        """Of the rounds' adapters the best by validation; the last round's where they are alike."""
        return self.scores.best(tuple(filter(_of_round, self.candidates)))

    def adapter(self) -> Adapter:
        """The run's result, with what one must know to use it."""
        metadata = {
            "base": self.config.silo.base.model,
            "fingerprint": self.silos.fingerprint,
            "task": self.config.silo.task.kind,
            "labels": json.dumps(self.silos.labels),
            "rule": self.config.strategy.rule,
            "space": self.config.strategy.space,
            "round": self.kept.partition("/")[2] or str(self.config.run.rounds),
        }
        kept = self.candidates[self.kept]
        return replace(kept, metadata=kept.metadata | metadata)

    def result(self, traffic: Traffic, seconds: Mapping[str, float]) -> dict[str, Any]:
        """The content of result.json, but for the path of the adapter.

        Args:
            traffic: bytes outside of rounds.
            seconds: by phase.
        """
        reports = [report.to_dict() for report in self.strategy.rounds]
        return {
            "metric": self.scores.metric,
            "higher_is_better": HIGHER_IS_BETTER.get(self.scores.metric, True),
            "silos": list(self.silos.roster.names),
            "candidates": self._table(),
            "kept": self.kept,
            "seed": self.config.run.seed,
            "rule": self.config.strategy.rule,
            "space": self.config.strategy.space,
            "rounds": reports,
            "bytes_up": traffic.up + sum(report["bytes_up"] for report in reports),
            "bytes_down": traffic.down + sum(report["bytes_down"] for report in reports),
            "seconds": dict(seconds),
            "refused": [
                {"round": each["round"], **refusal} for each in reports for refusal in each["refused"]
            ],
        }

    def _table(self) -> dict[str, Any]:
        """All candidates, but no adapter of an earlier round that turned out no better than the last."""
        dropped = [name for name in self.candidates if _of_round(name) and name not in (MERGED, self._best)]
        return {name: self.scores.row(name) for name in self.candidates if name not in dropped}


def _of_round(name: str) -> bool:
    return name.partition("/")[0] == MERGED
