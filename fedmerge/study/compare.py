"""Strategies on the same silos, data, batches and seeds: what is equal is computed once, and what is known
already is not computed again.

    <folder>/memo/                      what silos have answered, see memo.py
    <folder>/runs/<strategy>-seed<n>/   a run's folder for each row and seed
    <folder>/compare.json               the result
"""

from __future__ import annotations

import json
import shutil
import time
from collections.abc import Iterator, Mapping, Sequence
from contextlib import ExitStack, contextmanager
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

from fedmerge.config import Config, Flat, Scalar, read_config
from fedmerge.engine.executors import Executor
from fedmerge.engine.local import grid_over, serving
from fedmerge.errors import ConfigError
from fedmerge.server import storage
from fedmerge.server.observer import Observer, Silent
from fedmerge.server.plan import Plan
from fedmerge.server_app.conduct import conduct
from fedmerge.server_app.scoring import SPLITS, Scoring
from fedmerge.silo.data import load_silos
from fedmerge.study.bench import scope_of
from fedmerge.study.memo import Memo
from fedmerge.study.remembering import Remembering
from fedmerge.study.strategies import REFERENCE, Strategy, check, read_strategies
from fedmerge.study.tuning import Tried, Tuning


@dataclass(frozen=True)
class Question:
    """What is compared.

    Args:
        simulation: its whole run-config, flat.
        strategies: paths or packaged names; "all" stands for every packaged one that fits.
        seeds: each at least 0, no one twice.
        tuning: a knob that is tuned on validation rows before anything is scored on test rows; None for none.
        sets: keys that are set for every strategy alike.
        reference: name of the strategy that all are compared with.
        rows: test rows of each silo that are scored, spread evenly over them; 0 is all.
        space: where every strategy compares deltas, but for those that can't work there; "" leaves each its
            own.
        folder: where all is written; None takes a name made of the simulation's name and content.
    """

    simulation: Flat
    strategies: Sequence[str]
    seeds: Sequence[int] = (0,)
    tuning: Tuning | None = None
    sets: Mapping[str, Scalar] = field(default_factory=dict)
    space: str = ""
    reference: str = REFERENCE
    rows: int = 0
    folder: Path | None = None

    def __post_init__(self) -> None:
        """Check the seeds."""
        if not self.seeds or len(set(self.seeds)) < len(self.seeds) or min(self.seeds) < 0:
            raise ConfigError(f"--seeds {list(self.seeds)}: expected different whole numbers from 0")
        if self.rows < 0:
            raise ConfigError(f"--rows {self.rows}: expected 0 (all) or more")

    @property
    def place(self) -> Path:
        """The folder, absolute."""
        if self.folder is not None:
            return self.folder.expanduser().absolute()
        still: Flat = {"strategy.rule": "fedavg()", "run.seed": 0, "strategy.shadows": ""}
        config = read_config({**self.simulation, **self.sets, **still})
        return Path("runs", f"compare-{config.run.name}-{config.digest[:8]}").absolute()


@dataclass(frozen=True)
class Entry:
    """One strategy's run at one seed.

    Args:
        result: the content of its result.json.
        digests: of the scored adapters, by candidate.
        scope: of the memo's entries.
        labels: that the silos agreed on.
    """

    result: Mapping[str, Any]
    digests: Mapping[str, str]
    scope: str
    labels: tuple[str, ...] = ()


@dataclass
class Comparison:
    """The runs of a question, by strategy and seed.

    Args:
        question: what was asked.
        strategies: the rows, the reference first, with the tuned knob in their rules.
        skipped: packaged strategies that "all" stood for and that don't fit, with the reason.
        entries: by strategy's name, by seed.
        tried: what tuning tried, by strategy's name.
        memo: row by row scores lie here.
        computed: answers of silos that were computed for it, this time.
        recalled: answers that were known.
        seconds: that all took, this time.
    """

    question: Question
    strategies: list[Strategy]
    skipped: dict[str, str]
    memo: Memo
    entries: dict[str, dict[int, Entry]] = field(default_factory=dict)
    tried: dict[str, Tried] = field(default_factory=dict)
    computed: int = 0
    recalled: int = 0
    seconds: float = 0.0


@contextmanager
def compared(question: Question, observer: Observer | None = None) -> Iterator[Comparison]:
    """Conduct all runs of a question that are not there yet.

    Args:
        question: what to compare.
        observer: told of each run's progress.

    Yields:
        The comparison; its memo is open as long as one is inside.

    Raises:
        ConfigError: a strategy that contradicts the simulation, before anything is trained.
        FedMergeError: what a run raises; all that was computed until then is kept.
    """
    began = time.monotonic()
    watcher = observer or Silent()
    strategies, skipped = _fitting(question)
    if question.tuning is not None:  # a value that a rule can't take is said before anything is trained
        for strategy in strategies:
            question.tuning.candidates(strategy, str(question.simulation["strategy.rule"]))
    place = question.place
    with Memo(place / "memo") as memo:
        found = Comparison(question, strategies, skipped, memo)
        for seed in question.seeds:
            with _Season.opened(question, seed, memo, strategies) as season:
                if question.tuning is not None and seed == question.seeds[0]:
                    _tune(found, season, watcher)
                for place_in_row, strategy in enumerate(found.strategies):
                    watcher.phase(f"seed {seed}: {strategy.name}")
                    entry = season.run(strategy, with_baselines=place_in_row == 0)
                    found.entries.setdefault(strategy.name, {})[seed] = entry
                found.computed += season.executor.computed
                found.recalled += season.executor.recalled
        found.seconds = time.monotonic() - began
        yield found


def _fitting(question: Question) -> tuple[list[Strategy], dict[str, str]]:
    """The strategies, and those of "all" that don't fit, with the reason."""
    strategies, optional = read_strategies(question.strategies, question.simulation, question.reference)
    silos = len(load_silos(read_config({**question.simulation, **question.sets}).silo.data))
    fitting: list[Strategy] = []
    skipped: dict[str, str] = {}
    for given in strategies:
        strategy = _placed(given, question, silos)
        try:
            for seed in question.seeds:
                check(strategy, strategy.flat(question.simulation, seed, question.sets), silos)
        except ConfigError as problem:
            if strategy.name not in optional:
                raise
            skipped[strategy.name] = str(problem).partition(". ")[0]
            continue
        same = next((other.name for other in fitting if other.keys == strategy.keys), "")
        if same and strategy.name in optional:
            skipped[strategy.name] = f"the same as {same}"
        else:
            fitting.append(strategy)
    return fitting, skipped


def _placed(strategy: Strategy, question: Question, silos: int) -> Strategy:
    """The strategy in the space of the question; in its own where it does not work there."""
    if not question.space:
        return strategy
    placed = Strategy(strategy.name, {**strategy.keys, "strategy.space": question.space})
    try:
        check(placed, placed.flat(question.simulation, question.seeds[0], question.sets), silos)
    except ConfigError:
        return strategy
    return placed


def _tune(found: Comparison, season: _Season, watcher: Observer) -> None:
    """Give each strategy the value of the knob that is best on validation rows."""
    tuning = found.question.tuning
    assert tuning is not None
    rule = str(found.question.simulation["strategy.rule"])
    for place, strategy in enumerate(found.strategies):
        candidates = tuning.candidates(strategy, rule)
        scores: dict[float, float | None] = {}
        for value, candidate in candidates.items():
            watcher.phase(f"tuning {strategy.name}: {tuning.knob} {value:g}")
            scores[value] = season.trial(candidate, tuning)
        tried = found.tried[strategy.name] = Tried(tuning.knob, scores, season.higher_is_better)
        if tried.best is not None:
            found.strategies[place] = candidates[tried.best]


@dataclass
class _Season:
    """All runs of one seed: base and silos are loaded once, and answers shared."""

    question: Question
    seed: int
    executor: Remembering
    has_test_rows: bool
    higher_is_better: bool = True

    @classmethod
    @contextmanager
    def opened(
        cls, question: Question, seed: int, memo: Memo, strategies: Sequence[Strategy]
    ) -> Iterator[_Season]:
        """Load base and silos."""
        configs = [read_config(each.flat(question.simulation, seed, question.sets)) for each in strategies]
        needs: set[str] = set().union(*(Plan.of(config.strategy).needs for config in configs))
        with ExitStack() as stack:
            inner: Executor = stack.enter_context(serving(configs[0]))
            executor = Remembering(inner, memo, scope_of(configs[0]), tuple(sorted(needs)))
            executor.remembers = not configs[0].silo.lora.private
            tested = any(silo.test for silo in load_silos(configs[0].silo.data).values())
            yield cls(question, seed, executor, tested)

    def run(self, strategy: Strategy, *, with_baselines: bool) -> Entry:
        """The strategy's run, taken from its folder where that is whole."""
        folder = self.question.place / "runs" / f"{strategy.name}-seed{self.seed}"
        flat = strategy.flat(self.question.simulation, self.seed, self.question.sets)
        flat |= {"run.output": str(folder)} | (self._baselines() if with_baselines else {})
        config = read_config(flat)
        known = _known(folder, config, self.executor.scope, self.question.rows)
        if known is not None:
            return known
        shutil.rmtree(folder, ignore_errors=True)  # of another knob, or not whole: all of it is in the memo
        self.executor.digests.clear()
        # Of one round there is nothing to choose from, so that validation rows have no part in it, unless the
        # strategy wants its gate to judge the result by them.
        chosen = (config.run.rounds > 1 and config.run.keep == "best") or config.strategy.gate != "off()"
        splits = SPLITS if chosen or not self.has_test_rows else ("test",)
        scoring = Scoring(splits, self.question.rows)
        result = conduct(config, grid_over(self.executor), scoring=scoring)
        entry = Entry(result, dict(self.executor.digests), self.executor.scope, self.executor.labels)
        about = {
            "digest": config.digest,
            "scope": entry.scope,
            "rows": self.question.rows,
            "digests": entry.digests,
            "labels": list(entry.labels),
        }
        with storage.writing(folder):
            if not config.run.record:
                shutil.rmtree(folder / "rounds", ignore_errors=True)
            storage.write_json(folder / "study.json", about)
        return entry

    def trial(self, strategy: Strategy, tuning: Tuning) -> float | None:
        """The strategy's mean score on validation rows; None where it is no number.

        Args:
            strategy: with the knob at the value that is tried.
            tuning: says after how many rounds, and on how many rows.

        Raises:
            ConfigError: no silo has validation rows.
        """
        folder = self.question.place / "trial"
        flat = strategy.flat(self.question.simulation, self.seed, self.question.sets)
        flat |= {"run.output": str(folder), "run.keep": "last", "run.record": False}
        flat |= {"run.rounds": tuning.rounds} if tuning.rounds else {}
        config = read_config(flat)
        key = f"trial {self.executor.scope} {config.digest} {tuning.rows}"
        known = self.executor.memo.scores(key)
        if known is None:
            shutil.rmtree(folder, ignore_errors=True)
            scoring = Scoring(("validation",), tuning.rows)
            known = _trial_of(conduct(config, grid_over(self.executor), scoring=scoring))
            self.executor.memo.note_scores(key, known)
            shutil.rmtree(folder, ignore_errors=True)
        self.higher_is_better = bool(known["higher_is_better"])
        return float(known["mean"])

    def _baselines(self) -> Flat:
        """What the simulation compares with, and class means where there are classes."""
        names = str(self.question.simulation["run.baselines"])
        if self.question.simulation["task.kind"] == "classification" and "centroids" not in names:
            names = f"{names}, centroids"
        return {"run.baselines": names.strip(", ")}


def _trial_of(result: Mapping[str, Any]) -> dict[str, Any]:
    merged = result["candidates"]["merged"]
    if not merged.get("validation"):
        raise ConfigError(
            "tuning needs validation rows, and no silo has any: set data.validation above 0, or leave out "
            "--tune; test rows are never tuned on"
        )
    return {"mean": merged["mean"], "higher_is_better": result["higher_is_better"]}


def _known(folder: Path, config: Config, scope: str, rows: int) -> Entry | None:
    """What a whole run of this very configuration left, on this very data."""
    try:
        about = json.loads((folder / "study.json").read_text(encoding="utf-8"))
        result = json.loads((folder / "result.json").read_text(encoding="utf-8"))
        same = (about["digest"], about["scope"], about["rows"]) == (config.digest, scope, rows)
        return Entry(result, about["digests"], scope, tuple(about["labels"])) if same else None
    except (OSError, ValueError, KeyError, TypeError):
        return None
