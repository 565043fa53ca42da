"""Who says what is merged next: a grid, or one of Optuna's samplers. Both are asked, and told.

A search repeats itself: the same texts, sampler and seed ask for the same candidates, as long as they are
told the same scores. A sweep that goes on after an interruption therefore starts the search anew, and answers
from the leaderboard what is known already.
"""

from __future__ import annotations

import itertools
import logging
import warnings
from collections.abc import Callable, Iterable, Sequence
from dataclasses import dataclass
from types import ModuleType
from typing import TYPE_CHECKING, Any, Protocol

from fedmerge.errors import ConfigError, RuleError, nearest
from fedmerge.study.candidates import Candidate, Range, Template

if TYPE_CHECKING:
    from optuna.trial import Trial

MISSING = "a search needs Optuna: pip install 'fedmerge[search]'"


class Source(Protocol):
    """Gives candidates in batches, and is told what they scored."""

    @property
    def total(self) -> int:
        """How many candidates it asks for at most."""
        ...

    def ask(self, count: int) -> list[Candidate]:
        """The next candidates, at most so many; none where all were given."""
        ...

    def tell(self, candidate: Candidate, score: float | None) -> None:
        """What a candidate scored, in the order of asking; None where it failed."""
        ...


class Grid:
    """Candidates in a fixed order.

    Example:
        >>> grid = Grid([Candidate("fedavg()", "product()"), Candidate("median()", "product()")])
        >>> [str(candidate) for candidate in grid.ask(5)], grid.ask(5)
        (['fedavg() @ product()', 'median() @ product()'], [])
    """

    def __init__(self, candidates: Iterable[Candidate]) -> None:
        """Give these, each once."""
        found = tuple(dict.fromkeys(candidates))
        self.total = len(found)
        self._left = iter(found)

    def ask(self, count: int) -> list[Candidate]:
        """The next ones."""
        return list(itertools.islice(self._left, count))

    def tell(self, candidate: Candidate, score: float | None) -> None:
        """Nothing: the order is fixed."""


@dataclass(frozen=True)
class SearchSettings:
    """How a search is made.

    Args:
        sampler: a name in `SAMPLERS`.
        trials: how many candidates are tried.
        seed: of the sampler.
        higher_is_better: the direction of the score.

    Raises:
        ConfigError: an unknown sampler, or no trials.
    """

    sampler: str
    trials: int = 100
    seed: int = 0
    higher_is_better: bool = True

    def __post_init__(self) -> None:
        if self.sampler not in SAMPLERS:
            raise ConfigError(f"--search {self.sampler!r}: {nearest(self.sampler, SAMPLERS)}")
        if self.trials < 1:
            raise ConfigError(f"--trials {self.trials}: expected at least 1")


class Search:
    """Templates searched by a sampler; what is known is told to it as it comes.

    Args:
        templates: texts, read; where there are several, which one to take is searched too.
        settings: sampler, trials, seed, direction.

    Raises:
        ConfigError: Optuna is not installed.
        RuleError: nothing in the templates is open.
    """

    def __init__(self, templates: Sequence[Template], settings: SearchSettings) -> None:
        """Begin a study in memory."""
        optuna = load_optuna()
        self._templates = _searched(templates)
        self.total = settings.trials
        self._asked = 0
        self._waiting: list[tuple[Candidate, Trial]] = []
        with warnings.catch_warnings():
            warnings.simplefilter("ignore")  # several samplers warn that they are new
            sampler = SAMPLERS[settings.sampler](optuna.samplers, settings.seed)
        direction = "maximize" if settings.higher_is_better else "minimize"
        self._study = optuna.create_study(sampler=sampler, direction=direction)

    def ask(self, count: int) -> list[Candidate]:
        """What the sampler wants to see next.

        Raises:
            RuleError: a template that allows no candidate.
        """
        return [self._candidate() for _ in range(min(count, self.total - self._asked))]

    def tell(self, candidate: Candidate, score: float | None) -> None:
        """The score of the candidate that was asked for first and not told yet."""
        asked, trial = self._waiting.pop(0)
        if asked != candidate:
            raise ValueError(f"{candidate} was told, {asked} was asked before it")
        from optuna.trial import TrialState  # noqa: PLC0415 (an extra)

        self._study.tell(trial, score, state=TrialState.FAIL if score is None else None)

    def _candidate(self) -> Candidate:
        with warnings.catch_warnings():
            warnings.simplefilter("ignore")
            trial = self._study.ask()
            candidate = _decided(self._templates, trial)
        self._asked += 1
        self._waiting.append((candidate, trial))
        return candidate


@dataclass(frozen=True)
class _Trial:
    """A `Chooser` that asks an Optuna trial."""

    trial: Any

    def one_of(self, name: str, labels: Sequence[str]) -> int:
        """A category by its text, so that it means the same in every study."""
        return labels.index(self.trial.suggest_categorical(name, list(labels)))

    def number(self, name: str, limits: Range) -> float:
        """A number, rounded to four digits so that texts stay short."""
        if limits.whole:
            return int(self.trial.suggest_int(name, int(limits.low), int(limits.high), log=limits.log))
        value = self.trial.suggest_float(name, limits.low, limits.high, log=limits.log)
        return min(max(float(f"{value:.4g}"), limits.low), limits.high)


def _decided(templates: Sequence[Template], trial: Trial) -> Candidate:
    chooser = _Trial(trial)
    if len(templates) == 1:
        return templates[0].chosen(chooser)
    place = chooser.one_of("candidate", [template.text for template in templates])
    return templates[place].chosen(chooser, f"{place}.")


def load_optuna() -> ModuleType:
    """Optuna, without its banners.

    Raises:
        ConfigError: it is not installed.
    """
    try:
        import optuna  # noqa: PLC0415 (an extra)
    except ModuleNotFoundError as error:
        raise ConfigError(f"{MISSING} ({error.name} is missing)") from None
    optuna.logging.set_verbosity(logging.ERROR)
    return optuna


def _searched(templates: Sequence[Template]) -> tuple[Template, ...]:
    """The templates, where a search has something to decide.

    Raises:
        RuleError: there is one only, and it holds neither a range nor a list.
    """
    if len(templates) == 1 and not templates[0].is_open:
        raise RuleError(
            f"{templates[0].text!r}: nothing is open in it; a search wants a range, between(0.05, 1.0) or "
            "log_between(0.1, 5.0), or a list"
        )
    return tuple(templates)


Maker = Callable[[Any, int], Any]

SAMPLERS: dict[str, Maker] = {
    "tpe": lambda samplers, seed: samplers.TPESampler(seed=seed, constant_liar=True),
    "random": lambda samplers, seed: samplers.RandomSampler(seed=seed),
    "cmaes": lambda samplers, seed: samplers.CmaEsSampler(seed=seed, warn_independent_sampling=False),
    "gp": lambda samplers, seed: samplers.GPSampler(
        seed=seed, deterministic_objective=True, warn_independent_sampling=False
    ),
    "qmc": lambda samplers, seed: samplers.QMCSampler(
        scramble=True, seed=seed, warn_asynchronous_seeding=False, warn_independent_sampling=False
    ),
}
"""Name -> Optuna's sampler, seeded."""
