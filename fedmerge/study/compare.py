"""Strategies on the same silos, data, batches and seeds: what is equal is computed once, and what is known
already is not computed again.

    <folder>/memo/                      what silos have answered, see memo.py
    <folder>/runs/<strategy>-seed<n>/   a run's folder for each row and seed
    <folder>/compare.json               the result
"""

from __future__ import annotations

import time
from collections.abc import Iterator
from contextlib import contextmanager
from dataclasses import dataclass, field

from fedmerge.config import read_config
from fedmerge.errors import ConfigError
from fedmerge.server.observer import Observer, Silent
from fedmerge.silo.data import load_silos
from fedmerge.study.memo import Memo
from fedmerge.study.season import Entry, Question, Season
from fedmerge.study.strategies import Strategy, check, read_strategies
from fedmerge.study.tuning import Tried


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
            with Season.opened(question, seed, memo, strategies) as season:
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


def _tune(found: Comparison, season: Season, watcher: Observer) -> None:
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
