"""Tuning one knob of every rule on validation rows, each with the same number of trials."""

from __future__ import annotations

import math
from collections.abc import Mapping
from dataclasses import dataclass

from fedmerge.errors import ConfigError
from fedmerge.study.knobs import parse_tune, tunable
from fedmerge.study.strategies import Strategy


@dataclass(frozen=True)
class Tuning:
    """Which knob is turned, through which values.

    Args:
        knob: of a rule, "scale".
        values: that are tried.
        rounds: of a trial; 0 takes those of the simulation. With 1, a knob is chosen by the first merge,
            which costs no training, and is kept in all rounds.
        rows: validation rows of each silo that a trial is scored on; 0 takes all.
    """

    knob: str
    values: tuple[float, ...]
    rounds: int = 0
    rows: int = 0

    def __post_init__(self) -> None:
        """Check the counts."""
        if self.rounds < 0:
            raise ConfigError(f"--tune-rounds {self.rounds}: expected 0 (those of the simulation) or more")
        if self.rows < 0:
            raise ConfigError(f"--tune-rows {self.rows}: expected 0 (all) or more")

    @classmethod
    def parse(cls, text: str, rounds: int = 0, rows: int = 0) -> Tuning:
        """Read `knob` or `knob=value,value`.

        Raises:
            ConfigError: text that can't be read.

        Example:
            >>> Tuning.parse("scale=0.5,1").values
            (0.5, 1.0)
        """
        return cls(*parse_tune(text), rounds, rows)

    def candidates(self, strategy: Strategy, default: str) -> dict[float, Strategy]:
        """The strategy at each value; none where its rule has no such knob.

        Args:
            strategy: as given.
            default: the rule of the simulation.
        """
        rule = str(strategy.keys.get("strategy.rule", default))
        if not tunable(rule, self.knob):
            return {}
        found = {value: strategy.tuned(self.knob, value, default) for value in self.values}
        return {value: candidate for value, candidate in found.items() if candidate is not None}


@dataclass(frozen=True)
class Tried:
    """The trials of one strategy.

    Args:
        knob: that was turned.
        scores: mean over silos on validation rows, by value; empty where the rule has no such knob.
        higher_is_better: the metric's direction.
    """

    knob: str
    scores: Mapping[float, float | None]
    higher_is_better: bool

    @property
    def best(self) -> float | None:
        """The value of the best score, of equal ones the smallest; None where nothing was tried."""
        known = {
            value: score
            for value, score in sorted(self.scores.items())
            if score is not None and not math.isnan(score)
        }
        if not known:
            return None
        return (max if self.higher_is_better else min)(known, key=known.__getitem__)

    @property
    def at_the_edge(self) -> bool:
        """Whether the best value is the first or last that was tried: a better one may lie beyond."""
        return len(self.scores) > 1 and self.best in (min(self.scores), max(self.scores))
