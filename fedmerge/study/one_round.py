"""One round without any training: deltas that are there already, merged, scored, and written as a run.

What comes out is a run's folder as `simulate` leaves it, of one round: rounds/0000 holds the received
adapter, rounds/0001 the deltas and what was made of them.
"""

from __future__ import annotations

import time
from collections.abc import Callable, Mapping
from dataclasses import dataclass, field, replace
from typing import TYPE_CHECKING, Any

import torch

from fedmerge.adapters import Adapter
from fedmerge.adapters.optimizers import OptimizerState
from fedmerge.adapters.statistics import Statistics
from fedmerge.config import Config
from fedmerge.errors import ConfigError
from fedmerge.rules.statistics import needs_of
from fedmerge.server.counterfactuals import shadowed
from fedmerge.server.folder import RunFolder
from fedmerge.server.guard import Admitted
from fedmerge.server.merging import Closed, Merger
from fedmerge.server.observer import Observer, Several
from fedmerge.server.plan import Plan
from fedmerge.server.reading import finite_norm
from fedmerge.server.report import RoundReport
from fedmerge.server.standing import Standing
from fedmerge.server.weighting import weights_of
from fedmerge.server_app import outcome
from fedmerge.server_app.errands import Traffic
from fedmerge.server_app.muster import Muster
from fedmerge.server_app.resumption import seal
from fedmerge.server_app.scoring import BASE, MERGED, SPLITS, Scores
from fedmerge.silo.seeding import use_deterministic_algorithms

if TYPE_CHECKING:
    from fedmerge.study.bench import Bench

More = Callable[[Scores], Mapping[str, Any]]
"""What result.json has to say besides a run's own, from the scores."""

ALONE, BEFORE = "alone/", "before"


@dataclass(frozen=True)
class Material:
    """What a round merges.

    Args:
        received: what the deltas are differences to.
        deltas: by name.
        counts: what each counts, by the same names: numbers of examples, or any raw weights above 0.
        state: of the server optimizer before the round; None where it has none yet.
        statistics: what silos measured besides, by name, where it was kept.
    """

    received: Adapter
    deltas: Mapping[str, Adapter]
    counts: Mapping[str, float]
    state: OptimizerState | None = None
    statistics: Mapping[str, Statistics] = field(default_factory=dict)

    def trained(self, name: str) -> Adapter:
        """The adapter that a delta leads to."""
        delta = self.deltas[name].tensors
        tensors = {key: value + delta[key].to(value.dtype) for key, value in self.received.tensors.items()}
        return replace(self.received, tensors=tensors)

    @property
    def measured(self) -> frozenset[str]:
        """The statistics that are there for every delta."""
        return frozenset.intersection(*(frozenset(self.statistics.get(name, {})) for name in self.deltas))

    def replies(self) -> list[Admitted]:
        """The deltas as a round's replies, sorted by name.

        Raises:
            WireError: NaN or Inf in one of them.
        """
        return [
            Admitted(
                name,
                delta,
                self.counts[name],
                {},
                finite_norm(delta.tensors),
                statistics=self.statistics.get(name, {}),
            )
            for name, delta in sorted(self.deltas.items())
        ]


@dataclass
class OneRound:
    """One round over material at hand, by a run-config.

    Args:
        config: of the run that is written; its rule, space, weighting and seed are used.
        bench: has the base and the silos' rows.
        material: what is merged.
        observer: told of progress.
        reports: of the round, once it is merged.
        standing: without a gate: whoever merges what is at hand sees the scores before and after.
        broadcast: what was merged, once it is.
    """

    config: Config
    bench: Bench
    material: Material
    observer: Observer
    reports: list[RoundReport] = field(default_factory=list)
    standing: Standing = field(default_factory=Standing)
    broadcast: Adapter | None = None

    @property
    def rounds(self) -> list[RoundReport]:
        """The reports, as a strategy has them."""
        return self.reports

    def plan(self) -> Plan:
        """Rule, space and shadows, checked against the names before anything is written.

        Raises:
            ConfigError: a rule that needs what no delta brings along.
            RoundFailed: a rule that can't merge these.
        """
        plan = Plan.of(self.config.strategy)
        names, kept = sorted(self.material.deltas), self.material.measured
        if needs := sorted(needs_of(plan.rule) - kept):
            raise ConfigError(
                f"strategy.rule = {str(plan.rule)!r} needs what silos measure ({', '.join(needs)}), which is "
                "not there for every delta; name another rule"
            )
        plan.check_names(names)
        plan.check_clients(len(names), len(names))
        return replace(
            plan, shadows=tuple(shadow for shadow in plan.shadows if needs_of(shadow.rule) <= kept)
        )

    def run(self, scored: Mapping[str, Adapter], known: Mapping[str, Any], more: More) -> dict[str, Any]:
        """Merge, score and write.

        Args:
            scored: adapters to score besides what is merged, by name.
            known: rows of candidates that were scored before, by name.
            more: gives what result.json has to say besides, from the scores.

        Returns:
            The content of result.json.
        """
        torch.set_num_threads(self.config.silo.train.threads)  # of the thread that merges: bits depend on it
        use_deterministic_algorithms()
        plan, silos = self.plan(), self.bench.muster
        with RunFolder(self.config.folder, self.config.flat) as folder:
            folder.start(outcome.environment(self.config, silos))
            told = Several((folder, self.observer))
            told.run_started(self._plan_told(silos))
            merged, shadows = self._merge(plan, folder, told)
            self.broadcast = merged
            told.phase("scoring")
            began = time.monotonic()
            candidates = {**scored, **shadows, MERGED: merged}
            scores = score(self.bench, candidates)
            ended = outcome.Ended(self.config, silos, self, candidates, scores)
            path = folder.write_adapter(
                ended.adapter(),
                base_model=self.config.silo.base.model,
                task_type=outcome.task_type(self.config),
            )
            seconds = {"scoring": round(time.monotonic() - began, 3)}
            result = ended.result(Traffic(), seconds) | {"adapter": str(path)} | seal(str(path))
            result["candidates"] = _in_order(known, result["candidates"])
            result |= more(scores)
            told.finished(result)
            return result

    def _plan_told(self, silos: Muster) -> dict[str, Any]:
        told = outcome.plan(self.config, silos, self.material.received)
        return told | {"silos": sorted(self.material.deltas), "examples": dict(self.material.counts)}

    def _merge(self, plan: Plan, folder: RunFolder, told: Observer) -> tuple[Adapter, dict[str, Adapter]]:
        """The next adapter and the shadows' by name; all that led there is written down first."""
        began, replies, strategy = time.monotonic(), self.material.replies(), self.config.strategy
        names = tuple(reply.silo for reply in replies)
        told.round_started(1, names)
        told.phase("merging")
        folder.write_round(0, self.material.received, optimizer=self.material.state)
        weights = weights_of([reply.examples for reply in replies], strategy.weighting, strategy.weight_cap)
        for reply in replies:
            folder.write_delta(1, reply.silo, reply.delta, reply.statistics)
            told.reply(1, reply.silo, "admitted", {})
        report = RoundReport(1, names)
        report.admit(replies, weights)
        report.bytes_up = sum(_bytes(reply.delta) for reply in replies)
        merger = Merger(plan, self.config.run.seed, self.config.silo.train.device, self.material.state)
        closed = Closed(1, self.material.received, replies, weights)
        merged, report.merge = merger.step(closed)
        report.seconds["merge"] = time.monotonic() - began
        silos = dict(zip(names, weights, strict=True))
        folder.write_round(1, merged, optimizer=merger.state, state={"silos": silos})
        self.reports.append(report)
        told.round_closed(report.to_dict())
        return merged, {
            f"shadow/{name}": adapter for name, adapter in shadowed(merger, closed).adapters.items()
        }


def score(bench: Bench, candidates: Mapping[str, Adapter]) -> Scores:
    """Score adapters on all silos' rows; on validation rows only what a run may keep, where test rows are."""
    decided = {name: adapter for name, adapter in candidates.items() if name in (MERGED, BASE, BEFORE)}
    others = {name: adapter for name, adapter in candidates.items() if name not in decided}
    first = bench.evaluate(decided, splits=SPLITS)
    if not others:
        return first
    shown = ("test",) if first.summary(MERGED, "test") else ("validation",)
    second = bench.evaluate(others, splits=shown).metrics
    return Scores({silo: {**metrics, **second.get(silo, {})} for silo, metrics in first.metrics.items()})


def _in_order(known: Mapping[str, Any], rows: Mapping[str, Any]) -> dict[str, Any]:
    """Rows in reading order: base, silos alone, shadows, merged, pooled training."""
    kinds = (BASE, "alone", "shadow", MERGED, "pooled")
    table = {name: row for name, row in {**known, **rows}.items() if name != BEFORE}
    return dict(sorted(table.items(), key=lambda item: kinds.index(item[0].partition("/")[0])))


def _bytes(adapter: Adapter) -> int:
    return sum(tensor.nbytes for tensor in adapter.tensors.values())
