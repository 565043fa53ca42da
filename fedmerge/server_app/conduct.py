"""One run from the first query to result.json, over any Grid."""

from __future__ import annotations

import dataclasses
import time
from collections.abc import Iterator, Mapping
from contextlib import contextmanager
from dataclasses import dataclass, field
from typing import Any

import torch
from flwr.serverapp import Grid

from fedmerge.adapters import Adapter
from fedmerge.config import Config
from fedmerge.server.folder import RunFolder
from fedmerge.server.observer import Observer, Several, Silent
from fedmerge.server.strategy import MergeStrategy
from fedmerge.server_app import outcome
from fedmerge.server_app.baselines import Baselines
from fedmerge.server_app.errands import Errands
from fedmerge.server_app.muster import Muster, expects_gpu, muster
from fedmerge.server_app.scoring import score
from fedmerge.silo.lora import initial_adapter
from fedmerge.wire.protocol import Instruction
from fedmerge.wire.records import to_record


def conduct(config: Config, grid: Grid, observer: Observer | None = None) -> dict[str, Any]:
    """Run everything that a run-config describes, and write it down.

    Args:
        config: what to run.
        grid: reaches the nodes; one that yields replies as they come keeps memory small.
        observer: told of progress, beside the run's folder.

    Returns:
        What stands in result.json.

    Raises:
        ConfigError: a setting, base or data set that can't be used, at the server or at a silo.
        RoundFailed: no nodes, too few usable replies, no scores.
        CheckpointError: the run's folder can't be written, or belongs to another run.
    """
    torch.set_num_threads(config.silo.train.threads)  # of the thread that merges: bits depend on it
    clock = Clock()
    folder = RunFolder(config.folder, config.flat)
    try:
        with clock.phase("setup"):
            run = _prepare(config, grid, folder, observer or Silent())
        return _conduct(run, clock)
    finally:
        folder.close()


@dataclass
class Clock:
    """Seconds by phase."""

    seconds: dict[str, float] = field(default_factory=dict)

    @contextmanager
    def phase(self, name: str) -> Iterator[None]:
        """Time what is inside."""
        began = time.monotonic()
        try:
            yield
        finally:
            self.seconds[name] = round(time.monotonic() - began, 3)


@dataclass(frozen=True)
class _Run:
    """What is fixed before round 1."""

    config: Config
    grid: Grid
    folder: RunFolder
    observer: Observer
    silos: Muster
    initial: Adapter
    instruction: Instruction

    def errands(self) -> Errands:
        return Errands(self.grid, self.silos.roster)


def _prepare(config: Config, grid: Grid, folder: RunFolder, observer: Observer) -> _Run:
    """Learn who takes part; only then does the folder of an earlier run of the same config begin anew."""
    observer.phase("waiting for nodes")
    silos = muster(grid, config)
    initial = initial_adapter(config.silo, silos.labels or None)
    folder.start(outcome.environment(config, silos))
    watchers = Several((folder, observer))
    watchers.run_started(outcome.plan(config, silos, initial))
    train = config.silo.train
    instruction = Instruction(
        seed=config.run.seed,
        fingerprint=silos.fingerprint,
        deadline_seconds=config.strategy.deadline_seconds,
        epochs=train.epochs,
        steps=train.steps,
        splits=("validation",),
        labels=silos.labels,
    )
    return _Run(config, grid, folder, watchers, silos, initial, instruction)


def _conduct(run: _Run, clock: Clock) -> dict[str, Any]:
    strategy = _strategy(run)
    with clock.phase("rounds"):
        rounds, deadline = run.config.run.rounds, run.config.strategy.deadline_seconds
        strategy.start(run.grid, to_record(run.initial.tensors), rounds, timeout=deadline)
    errands = run.errands()
    with clock.phase("baselines"):
        baselines = _baselines(run, errands, strategy)
    with clock.phase("evaluation"):
        run.observer.phase("scoring")
        candidates = outcome.candidates(strategy, run.initial, baselines)
        order = dataclasses.replace(run.instruction, round=rounds, epochs=0, steps=0)
        scores = score(errands, candidates, order, timeout_seconds=deadline)
    ended = outcome.Ended(run.config, run.silos, strategy, candidates, scores)
    path = run.folder.write_adapter(
        ended.adapter(), base_model=run.config.silo.base.model, task_type=outcome.task_type(run.config)
    )
    result = ended.result(errands.traffic, clock.seconds) | {"adapter": str(path)}
    run.observer.finished(result)
    return result


def _strategy(run: _Run) -> MergeStrategy:
    settings = dataclasses.asdict(run.config.strategy)
    return MergeStrategy(
        **settings,
        encoding=run.config.wire.encoding,
        roster=run.silos.roster,
        lora=run.initial.lora,
        seed=run.config.run.seed,
        fingerprint=run.silos.fingerprint,
        instruction=run.instruction,
        expects_gpu=expects_gpu(run.config),
        record=run.config.run.record,
        observer=run.observer,
        folder=run.folder,
    )


def _baselines(run: _Run, errands: Errands, strategy: MergeStrategy) -> Mapping[str, Adapter]:
    """The baselines' adapters; none in a deployment, where no node may see another's rows."""
    if not run.config.run.baselines or not run.silos.roster.shared:
        return {}
    run.observer.phase("training the baselines")
    first_deltas = {reply.silo: reply.delta for reply in strategy.last_replies}
    return Baselines(run.config, errands, run.initial, run.instruction).train(first_deltas)
