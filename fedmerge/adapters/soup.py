"""Which adapters to merge at all: those that a held-out score says belong together."""

from __future__ import annotations

import math
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass, replace

import torch
from torch import Tensor

from fedmerge.adapters.adapter import Adapter, as_adapter
from fedmerge.adapters.checks import check_weights
from fedmerge.adapters.merge import Merged, MergeReport, merge
from fedmerge.adapters.spaces import Space
from fedmerge.errors import AdapterMismatch, RuleError
from fedmerge.rules import Rule

Candidates = (
    Sequence[Adapter | Mapping[str, Tensor]] | Mapping[str, Adapter] | Mapping[str, Mapping[str, Tensor]]
)
Evaluate = Callable[[Adapter], float]


@dataclass(frozen=True)
class Trial:
    """One candidate tried in the soup.

    Args:
        name: of the candidate.
        alone: its own score.
        together: the score of the soup with it; for the first one its own.
        taken: whether it stayed in.
    """

    name: str
    alone: float
    together: float
    taken: bool


@dataclass(frozen=True, eq=False)
class Soup:
    """A greedy soup.

    Args:
        adapter: the soup, on the CPU; with a single candidate taken that candidate as it came.
        score: its score, never below that of the best candidate.
        trials: every candidate, in the order in which they were tried: best first.
        report: of the merge that made it; None where a single candidate was taken.
    """

    adapter: Adapter
    score: float
    trials: tuple[Trial, ...]
    report: MergeReport | None

    @property
    def taken(self) -> tuple[str, ...]:
        """Names of the candidates in it, in the order in which they went in."""
        return tuple(trial.name for trial in self.trials if trial.taken)

    @property
    def scores(self) -> dict[str, float]:
        """Each candidate's own score, best first."""
        return {trial.name: trial.alone for trial in self.trials}


def greedy_soup(
    candidates: Candidates,
    evaluate: Evaluate,
    *,
    weights: Sequence[float] | Tensor | None = None,
    received: Adapter | Mapping[str, Tensor] | None = None,
    rule: Rule | str = "fedavg()",
    space: Space | str = "factors()",
    seed: int = 0,
    device: torch.device | str = "auto",
) -> Soup:
    """Merge the candidates that help: from the best on, each is added unless the score falls.

    All are scored alone and sorted by that score, of equal ones the first given first. The soup starts as the
    best one; each of the others joins for good where `score(merge(soup + candidate)) >= score(soup)`. For N
    candidates that is 2 N - 1 evaluations.

    Args:
        candidates: deltas as for `merge`, by name or in a sequence; those in a sequence are called
            "candidate 0", "candidate 1". All share one base; where `received` is None they are adapters of
            their own.
        evaluate: the held-out score of an adapter, larger is better; a finite number. Scored on the rows that
            the result is judged by it would overfit them: keep some back.
        weights: raw weights of the candidates in the merge, above 0; None: all alike, as in the paper.
        received: what the candidates were trained from; None stands for zero.
        rule: how to merge.
        space: where to compare.
        seed: of random masks.
        device: where to merge; what `evaluate` is given is on the CPU.

    Returns:
        The soup, who is in it, and all scores.

    Raises:
        RuleError: `evaluate` raised, or gave something else than a finite number (the candidate is named); a
            rule, space or weights that can't be used.
        AdapterMismatch: no candidate, or candidates that do not belong together.

    Example:
        >>> good, better, bad = ({"x": torch.tensor([value])} for value in (1.0, 2.5, 9.0))
        >>> soup = greedy_soup([good, better, bad], lambda adapter: -abs(adapter.tensors["x"].item() - 2))
        >>> soup.taken, soup.adapter.tensors["x"].tolist(), soup.scores["candidate 2"]
        (('candidate 1', 'candidate 0'), [1.75], -7.0)

    Reference:
        Wortsman et al., "Model soups: averaging weights of multiple fine-tuned models improves accuracy
        without increasing inference time", 2022, arXiv:2203.05482, recipe 1.
    """
    named = _named(candidates)
    shares = _shares(weights, named)

    def blend(members: Sequence[str], rule: Rule | str, space: Space | str) -> Merged:
        return merge(
            [named[name] for name in members],
            [shares[name] for name in members],
            received=received,
            rule=rule,
            space=space,
            names=members,
            seed=seed,
            device=device,
        )

    blend(list(named), rule, space)  # what can't be merged is refused before anything is evaluated
    singles = {name: blend([name], "fedavg()", "factors()").adapter for name in named}
    scores = {name: _score(evaluate, single, f"{name!r} alone") for name, single in singles.items()}
    first, *others = sorted(scores, key=lambda name: -scores[name])  # stable: of equals the first given
    soup = Soup(singles[first], scores[first], (Trial(first, scores[first], scores[first], True),), None)
    del singles
    for name in others:
        merged = blend([*soup.taken, name], rule, space)
        together = _score(
            evaluate, merged.adapter, f"{name!r} merged with {', '.join(map(repr, soup.taken))}"
        )
        soup = _after(soup, Trial(name, scores[name], together, together >= soup.score), merged)
    return soup


def _after(soup: Soup, trial: Trial, merged: Merged) -> Soup:
    """The soup after one more was tried in it."""
    trials = (*soup.trials, trial)
    if not trial.taken:
        return replace(soup, trials=trials)
    return Soup(merged.adapter, trial.together, trials, merged.report)


def _score(evaluate: Evaluate, adapter: Adapter, what: str) -> float:
    """What `evaluate` says.

    Raises:
        RuleError: nothing that can be compared.
    """
    try:
        found = evaluate(adapter)
    except Exception as error:
        raise RuleError(
            f"greedy_soup(): evaluate failed on {what}: {type(error).__name__}: {error}"
        ) from error
    try:
        score = float(found)
    except (TypeError, ValueError):
        score = math.nan
    if not math.isfinite(score):
        raise RuleError(f"greedy_soup(): evaluate gave {found!r} for {what}, expected a finite number")
    return score


def _shares(weights: Sequence[float] | Tensor | None, named: Mapping[str, Adapter]) -> dict[str, float]:
    """Raw weights by name, all above 0."""
    shares = dict(zip(named, check_weights(weights, len(named)), strict=True))
    for name, weight in shares.items():
        if not weight:
            raise RuleError(f"greedy_soup(): the weight of {name!r} is 0; leave the candidate out")
    return shares


def _named(candidates: Candidates) -> dict[str, Adapter]:
    """The candidates by name, in the order given."""
    if isinstance(candidates, Adapter) or (
        isinstance(candidates, Mapping) and any(isinstance(value, Tensor) for value in candidates.values())
    ):
        raise AdapterMismatch("greedy_soup() takes several candidates; a single one was given")
    if isinstance(candidates, Mapping):
        named = {name: as_adapter(candidate) for name, candidate in candidates.items()}
    else:
        named = {f"candidate {place}": as_adapter(candidate) for place, candidate in enumerate(candidates)}
    if not named:
        raise AdapterMismatch("greedy_soup() was given no candidate, expected at least one")
    return named
