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
from fedmerge.server.scores import HIGHER_IS_BETTER, summarize
from fedmerge.server.standing import VALIDATION, Standing, rejection
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


def described(adapter: Adapter, config: Config, silos: Muster, round: int) -> Adapter:
    """An adapter with what one must know to use it; `round` made it."""
    metadata = {
        "base": config.silo.base.model,
        "fingerprint": silos.fingerprint,
        "task": config.silo.task.kind,
        "labels": json.dumps(silos.labels),
        "rule": config.strategy.rule,
        "space": config.strategy.space,
        "round": str(round),
    }
    return replace(adapter, metadata=adapter.metadata | metadata)


def task_type(config: Config) -> str | None:
    """PEFT's name of the task."""
    return _TASK_TYPES.get(config.silo.task.kind)


def candidates(
    strategy: MergeStrategy, initial: Adapter, baselines: Mapping[str, Adapter]
) -> dict[str, Adapter]:
    """All adapters that the run ends with, by name, in reading order.

    "merged" is the last round's; "merged/<n>" that of another round, where it had the best validation scores
    or is the last that the gate let pass; "base" is the adapter that round 1 received, which changes nothing
    yet.
    """
    last = strategy.broadcast
    assert last is not None  # a round was closed, or we would not be here
    found = {BASE: initial}
    found |= {name: adapter for name, adapter in baselines.items() if name != "pooled"}
    if strategy.terms.shared:  # in a deployment scoring them costs each silo its time
        found |= {f"shadow/{name}": adapter for name, adapter in strategy.shadow_adapters.items()}
    earlier = {each.round: each.adapter for each in (strategy.best, strategy.standing.unsure(last)) if each}
    found |= {
        f"{MERGED}/{round}": earlier[round] for round in sorted(earlier) if _is_earlier(round, strategy)
    }
    return found | {MERGED: last} | {name: baselines[name] for name in ("pooled",) if name in baselines}


def _is_earlier(round: int, strategy: MergeStrategy) -> bool:
    """Whether the adapter of a round is neither the initial nor the last one."""
    return 0 < round < strategy.standing.made(strategy.broadcast, len(strategy.rounds))


class Merging(Protocol):
    """What merged the rounds: a strategy, or whoever else can tell of them."""

    @property
    def rounds(self) -> Sequence[RoundReport]:
        """A report of each round."""
        ...

    @property
    def standing(self) -> Standing:
        """What the gate let pass."""
        ...

    @property
    def broadcast(self) -> Adapter | None:
        """What the last round made."""
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
        """Name of the candidate that is the run's result; never what the gate rejects."""
        return self._best if self.config.run.keep == "best" else self._passing[-1]

    @property
    def rejection(self) -> str:
        """Why the merge of the last round is not kept, by its validation scores; "" where it may be."""
        good = self.strategy.standing.unsure(self.strategy.broadcast)
        after = self.scores.summary(MERGED, VALIDATION)
        if good is None or after is None:
            return ""
        before = summarize(self.scores.metrics, _name(good.round), VALIDATION, after.metric)
        why = self.strategy.standing.gate.judge(before, after)
        return rejection(len(self.strategy.rounds), why, "it is not kept") if why else ""

    @property
    def _best(self) -> str:
        """Of the rounds' adapters the best by validation; the last round's where they are alike."""
        return self.scores.best(self._passing)

    @property
    def _passing(self) -> tuple[str, ...]:
        """The rounds' adapters that may be kept, the last one last; "base" where that is none."""
        names = tuple(filter(_of_round, self.candidates))
        if self.rejection:
            return tuple(name for name in names if name != MERGED) or (BASE,)
        return names

    def adapter(self) -> Adapter:
        """The run's result, with what one must know to use it."""
        return described(self.candidates[self.kept], self.config, self.silos, self._round(self.kept))

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
            "unscored": sorted(set(self.silos.roster.names) - set(self.scores.metrics)),
            "candidates": self._table(),
            "kept": self.kept,
            "rejected": [report.rejected for report in self.strategy.rounds if report.rejected]
            + [self.rejection] * bool(self.rejection),
            "seed": self.config.run.seed,
            "rule": self.config.strategy.rule,
            "space": self.config.strategy.space,
            "rounds": reports,
            "bytes_up": traffic.up + sum(each["bytes_up"] + each["shadow_bytes"]["up"] for each in reports),
            "bytes_down": traffic.down
            + sum(each["bytes_down"] + each["shadow_bytes"]["down"] for each in reports),
            "seconds": dict(seconds),
            "refused": [
                {"round": each["round"], **refusal} for each in reports for refusal in each["refused"]
            ],
        }

    def _table(self) -> dict[str, Any]:
        """All candidates, but no adapter of an earlier round that turned out no better than the last."""
        shown = (MERGED, self._best, self.kept)
        dropped = [name for name in self.candidates if _of_round(name) and name not in shown]
        return {name: self.scores.row(name) for name in self.candidates if name not in dropped}

    def _round(self, name: str) -> int:
        """The round that made a candidate; 0 for the initial adapter."""
        if name == BASE:
            return 0
        made = self.strategy.standing.made(self.strategy.broadcast, self.config.run.rounds)
        return int(name.partition("/")[2] or made)


def _name(round: int) -> str:
    """The candidate that a round before the last one made."""
    return f"{MERGED}/{round}" if round else BASE


def _of_round(name: str) -> bool:
    return name.partition("/")[0] == MERGED
