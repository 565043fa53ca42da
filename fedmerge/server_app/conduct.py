"""One run from the first query to result.json, over any Grid."""

from __future__ import annotations

import dataclasses
import secrets
import time
from collections.abc import Iterator
from contextlib import contextmanager
from dataclasses import dataclass, field
from typing import Any

import torch
from flwr.app import ArrayRecord
from flwr.serverapp import Grid

from fedmerge.adapters import Adapter
from fedmerge.config import Config
from fedmerge.server.counterfactuals import Scorer
from fedmerge.server.folder import RunFolder
from fedmerge.server.identity import Identity
from fedmerge.server.observer import Observer, Several, Silent
from fedmerge.server.resuming import go_on, take_up, tidy_up
from fedmerge.server.saved import Saved
from fedmerge.server.signed_grid import SignedGrid
from fedmerge.server.strategy import MergeStrategy
from fedmerge.server_app import outcome, resumption
from fedmerge.server_app.baselines import Baselines
from fedmerge.server_app.errands import Errands
from fedmerge.server_app.failure import intact
from fedmerge.server_app.finale import Finale
from fedmerge.server_app.first_adapter import first_adapter
from fedmerge.server_app.held import held
from fedmerge.server_app.muster import Muster, expects_gpu, muster, rounds_of
from fedmerge.server_app.personal import Results
from fedmerge.server_app.scoring import Scores, Scoring
from fedmerge.silo.private import check_parts, shared_part
from fedmerge.silo.seeding import use_deterministic_algorithms
from fedmerge.wire.protocol import Instruction
from fedmerge.wire.records import shared_record

EVERYTHING = Scoring()


def conduct(
    config: Config,
    grid: Grid,
    observer: Observer | None = None,
    scoring: Scoring = EVERYTHING,
    identity: Identity | None = None,
) -> dict[str, Any]:
    """Run everything that a run-config describes, and write it down.

    Args:
        config: what to run.
        grid: reaches the nodes; one that yields replies as they come keeps memory small.
        observer: told of progress, beside the run's folder.
        scoring: what the final evaluation looks at; tuning must not see test rows.
        identity: of a deployment's server: signs every message, and has every reply proven.

    Returns:
        What stands in result.json.

    Raises:
        ConfigError: a setting, base or data set that can't be used, at the server or at a silo.
        RoundFailed: no nodes, too few usable replies, no scores.
        CheckpointError: the run's folder can't be written, belongs to another run, or can't be gone on with.
    """
    torch.set_num_threads(config.silo.train.threads)  # of the thread that merges: bits depend on it
    use_deterministic_algorithms()
    clock = Clock()
    grid = SignedGrid(grid, identity) if identity is not None else grid
    folder = RunFolder(config.folder, config.flat)
    try:
        if config.run.resume == "auto" and (result := resumption.finished(folder.path)) is not None:
            tidy_up(folder, result, config.run.rounds, recorded=config.run.record)
            return result
        with clock.phase("setup"):
            run = _prepare(config, grid, folder, observer or Silent(), scoring)
            if identity is not None:
                run = _capped(run, identity)
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
    record: ArrayRecord
    instruction: Instruction
    scorer: Scorer | None
    scoring: Scoring
    saved: Saved | None = None

    @property
    def shared(self) -> Adapter:
        """What of the initial adapter travels: all, but for what `lora.private` names."""
        return shared_part(self.initial, self.config.silo.lora.private_parts)

    @property
    def baselines(self) -> Baselines:
        """What the run is compared with; nothing in a deployment, where no node may see another's rows."""
        wanted = self.config.run.baselines if self.silos.roster.shared else ()
        return Baselines(self.config, self.silos.roster.names, wanted, self.initial, self.instruction)


def _prepare(config: Config, grid: Grid, folder: RunFolder, observer: Observer, scoring: Scoring) -> _Run:
    """Learn who takes part; only then does the folder of an earlier run of the same config begin anew."""
    saved = resumption.saved_run(config, folder.path) if config.run.resume == "auto" else None
    observer.phase("waiting for nodes")
    with first_adapter(config.silo) as initial_adapter:
        silos = muster(grid, config, resumption.names(saved))
        silos = silos if saved is None else resumption.same_run(saved, config, silos)
        initial = initial_adapter(silos.labels or None)
    scorer = held(config, silos)
    check_parts(initial, config.silo.lora.private_parts)
    if saved is not None:
        resumption.same_start(saved, shared_part(initial, config.silo.lora.private_parts))
        name = str(saved.begun["environment"].get("run", ""))
        take_up(folder, saved)
    else:
        # A deployed silo signs its replies, and remembers private tensors, by a name that no other run has.
        name = "" if silos.roster.shared else secrets.token_hex(8)
        environment = outcome.environment(config, silos) | ({"run": name} if name else {})
        folder.start(environment, resumption.to_be_found_again(silos))
    watchers = Several((folder, observer))
    watchers.run_started(outcome.plan(config, silos, initial))
    for report in saved.reports if saved is not None else ():
        observer.round_closed(report.to_dict())
    train = config.silo.train
    instruction = Instruction(
        seed=config.run.seed,
        fingerprint=silos.fingerprint,
        deadline_seconds=config.strategy.deadline_seconds,
        epochs=train.epochs,
        steps=train.steps,
        splits=("validation",),
        labels=silos.labels,
        run=name,
        asked=len(silos.roster.names) if name else 0,
    )
    record, views = shared_record(dict(initial.tensors))  # one copy of the values
    initial = dataclasses.replace(initial, tensors=views)
    return _Run(config, grid, folder, watchers, silos, initial, record, instruction, scorer, scoring, saved)


def _capped(run: _Run, identity: Identity) -> _Run:
    """The run with the weights that the server's roster lets its silos have."""
    roster = dataclasses.replace(run.silos.roster, caps=identity.caps)
    return dataclasses.replace(run, silos=dataclasses.replace(run.silos, roster=roster))


def _conduct(run: _Run, clock: Clock) -> dict[str, Any]:
    strategy = _strategy(run)
    with intact(run.config, run.folder, run.silos, strategy):
        return _rounds_and_scores(run, strategy, clock)


def _rounds_and_scores(run: _Run, strategy: MergeStrategy, clock: Clock) -> dict[str, Any]:
    with clock.phase("rounds"):
        rounds, deadline = run.config.run.rounds, run.config.strategy.deadline_seconds
        if run.saved is not None:
            go_on(strategy, run.grid, run.saved, rounds, deadline)
        else:
            shared = ArrayRecord({name: run.record[name] for name in run.shared.tensors})
            strategy.start(run.grid, shared, rounds, timeout=deadline)
    errands = Errands(run.grid, strategy.asker.last_call(run.grid, strategy.absences.known))
    with clock.phase("scoring"):
        run.observer.phase("training the baselines and scoring" if run.baselines.names else "scoring")
        candidates, scores = _score(run, errands, strategy)
    ended = outcome.Ended(run.config, run.silos, strategy, candidates, scores)
    personal = run.silos.roster.names if run.silos.roster.shared else ()
    written = Results(run.config, run.folder, run.initial).write(ended.adapter(), ended.kept, personal)
    result = ended.result(errands.traffic, clock.seconds) | written | resumption.seal(written["adapter"])
    run.observer.finished(result)
    tidy_up(run.folder, result, rounds, recorded=run.config.run.record)
    return result


def _strategy(run: _Run) -> MergeStrategy:
    return MergeStrategy(
        **dataclasses.asdict(rounds_of(run.config, shared=run.silos.roster.shared)),
        encoding=run.config.wire.encoding,
        roster=run.silos.roster,
        lora=run.initial.lora,
        seed=run.config.run.seed,
        fingerprint=run.silos.fingerprint,
        instruction=run.instruction,
        expects_gpu=expects_gpu(run.config),
        # In a deployment the silos' device says nothing about the server's.
        device=run.config.silo.train.device if run.silos.roster.shared else "auto",
        record=resumption.keeping(run.config, shared=run.silos.roster.shared),
        observer=run.observer,
        folder=run.folder,
        scorer=run.scorer,
        membership=run.silos.membership,
    )


def _score(run: _Run, errands: Errands, strategy: MergeStrategy) -> tuple[dict[str, Adapter], Scores]:
    """All adapters that the run ends with, and their scores."""
    order = dataclasses.replace(run.instruction, round=run.config.run.rounds, epochs=0, steps=0)
    order = dataclasses.replace(order, rows=run.scoring.rows)
    finale = Finale(errands, run.baselines, order, run.config.strategy.deadline_seconds, run.scoring.splits)
    known = run.baselines.known({reply.silo: reply.delta for reply in strategy.last_replies})
    trained, scores = finale.run(outcome.candidates(strategy, run.shared, known))
    return outcome.candidates(strategy, run.shared, known | trained), scores
