"""What is tried where nobody says what: about a hundred merges that fit the deltas at hand.

Most of what sets merges apart is the length of the step, then the rank that is kept, then how conflicts are
settled; so every family comes with lengths, and in the space of the received rank and in a wide one that cuts
nothing off a mean. A wide adapter is larger, which is no matter for a single merge.
"""

from __future__ import annotations

from collections.abc import Iterator, Mapping
from dataclasses import dataclass

import torch

from fedmerge.adapters import Adapter
from fedmerge.adapters.pairs import split_names
from fedmerge.adapters.spaces import parse_space
from fedmerge.adapters.statistics import check_needs
from fedmerge.errors import FedMergeError, RuleError
from fedmerge.rules import Draw, Rule, Stack, parse_rule
from fedmerge.rules.statistics import FISHER, GRAM, needs_of
from fedmerge.study.candidates import Candidate, expand

STEPS = (0.5, 1.5, 2.0, 3.0)
"""Lengths of the step of task arithmetic, in multiples of the mean; 1 is fedavg."""

MOST_ENTRIES = 100_000_000
"""Of all adapted weights together, up to which a rule that looks at entries is tried in product space, where it
works on matrices of the weights' size: one such merge takes 5 to 10 seconds there on one thread."""


@dataclass(frozen=True)
class Situation:
    """What decides which merges make sense.

    Args:
        silos: how many deltas are merged.
        wide: a rank that holds every mean of the updates exactly; 0 where nothing is a LoRA pair.
        entries: of all adapted weights together.
        together: whether all started from the same factors, so that factors can be compared.
        statistics: what every silo measured.
    """

    silos: int
    wide: int
    entries: int
    together: bool = True
    statistics: frozenset[str] = frozenset()

    @classmethod
    def of(
        cls, deltas: Mapping[str, Adapter], received: Adapter | None, statistics: frozenset[str] = frozenset()
    ) -> Situation:
        """Look at some deltas."""
        first = next(iter(deltas.values()))
        pairs, _ = split_names(first.tensors)
        shapes = [(len(first.tensors[pair.b]), first.tensors[pair.a][0].numel()) for pair in pairs]
        ranks = sum(delta.lora.rank for delta in deltas.values() if delta.lora)
        ranks += received.lora.rank if received is not None and received.lora else 0
        wide = min(ranks, max((min(shape) for shape in shapes), default=0))
        entries = sum(outputs * inputs for outputs, inputs in shapes)
        return cls(len(deltas), wide, entries, received is not None, statistics)


def default_candidates(situation: Situation) -> tuple[Candidate, ...]:
    """The candidates that are tried where none are given.

    Example:
        >>> found = default_candidates(Situation(silos=4, wide=40, entries=10**6))
        >>> len(found), str(found[0])
        (100, 'fedavg() @ product()')
    """
    return tuple(candidate for candidate in expand(_texts(situation)) if fits(candidate, situation))


def default_search(situation: Situation) -> tuple[str, ...]:
    """The texts that are searched where none are given: the families with the most to tune."""
    wide = _spaces(situation, "product()", f"product(rank={situation.wide})")
    cores = _spaces(situation, *(["product()"] if _dense(situation) else []), f"core(rank={situation.wide})")
    shares = f"{_number(0.2 / situation.silos)}, {_number(5 / situation.silos)}"
    return (
        f"task_arithmetic(scale=log_between({shares})) @ {wide}",
        f"ties(density=between(0.05, 1.0), scale=log_between(0.2, 5.0)) @ {cores}",
        f"dare_ties(density=between(0.1, 1.0), scale=log_between(0.2, 5.0)) @ {cores}",
    )


def fits(candidate: Candidate, situation: Situation) -> bool:
    """Whether a merge can work: its space takes the rule, statistics are there, the silos are enough."""
    rule, space = parse_rule(candidate.rule), parse_space(candidate.space)
    try:
        check_needs(rule, space)
        space.check_rule(rule)
    except RuleError:
        return False
    return needs_of(rule) <= situation.statistics and _takes(rule, situation.silos)


def _takes(rule: Rule, silos: int) -> bool:
    """Whether a rule merges so many; it is tried on small numbers."""
    if rule.kind == "by_name" or needs_of(rule):
        return True
    values = torch.randn(silos, 8, generator=torch.Generator().manual_seed(0))
    names = tuple(f"silo-{number}" for number in range(silos))
    try:
        rule(Stack(values, torch.ones(silos, 1, dtype=torch.float64)), Draw(0, 0, names, "trial", (8,)))
    except FedMergeError:
        return False
    return True


def _texts(situation: Situation) -> Iterator[str]:
    product, wide = "product()", f"product(rank={situation.wide})"
    core = f"core(rank={situation.wide})" if situation.wide else "factors()"
    dense = [product, wide] if _dense(situation) else []
    mean = _spaces(situation, product, wide, *(["factors()"] if situation.together else []))
    every, one = _spaces(situation, *dense, core), _spaces(situation, *dense[1:], core)
    exact = _spaces(situation, wide)
    yield f"fedavg() @ {mean}"
    yield f"task_arithmetic(scale={_steps(situation, STEPS)}) @ {mean}"
    yield f"ties(density=[0.1, 0.2, 0.5], scale=[0.5, 1.0, 1.5]) @ {every}"
    yield f"dare_ties(density=[0.5, 0.8], scale=[0.5, 1.0, 1.5]) @ {one}"
    yield f"della(density=[0.3, 0.7], scale=[1.0, 1.5]) @ {core}"
    yield f"breadcrumbs_ties(density=0.9, scale={_steps(situation, (1.0, 2.0))}) @ {core}"
    yield f"sce(density=[0.5, 1.0], scale=[1.0, 1.5]) @ {core}"
    yield f"consensus(scale={_steps(situation, (1.0, 2.0))}) @ {core}"
    yield f"[magmax(scale=[0.3, 0.5, 1.0]), emr_unified(scale=[0.3, 0.5, 1.0]), ram()] @ {core}"
    yield f"[median(), trimmed_mean(trim=0.25)] @ {one}"
    yield f"[model_stock(), karcher(), multislerp(), geometric_median()] @ {exact}"
    yield f"[krum(), multi_krum(), slerp(t=[0.3, 0.5, 0.7]), nuslerp()] @ {exact}"
    yield f"dare(density=[0.1, 0.5], scale=[1.0, 2.0]) @ {core}"
    yield f"knots(rule=ties(density=[0.2, 0.5], scale=[0.5, 1.0])) @ {exact}"
    yield f"tsv_merge(scale={_steps(situation, (1.0, 2.0, 3.0))}) @ {exact}"
    yield f"[iso_c(scale={_steps(situation, STEPS)}), iso_cts(scale={_steps(situation, (1.0, 2.0))})] @ {exact}"
    yield f"cart(density=0.1, scale=[0.3, 1.0]) @ {exact}"
    if FISHER in situation.statistics:
        yield "fisher(scale=[1.0, 1.5], normalize=['none', 'tensor']) @ factors()"
    if GRAM in situation.statistics:
        yield "regmean(off_diagonal=[0.9, 0.95]) @ factors()"


def _dense(situation: Situation) -> bool:
    return 0 < situation.entries <= MOST_ENTRIES


def _spaces(situation: Situation, *spaces: str) -> str:
    """A choice of spaces; where nothing is a LoRA pair all are the same, and one is enough."""
    return f"[{', '.join(dict.fromkeys(spaces))}]" if situation.wide else "factors()"


def _steps(situation: Situation, steps: tuple[float, ...]) -> str:
    """Lengths in multiples of the mean as scales of a rule that sums."""
    return f"[{', '.join(_number(step / situation.silos) for step in steps)}]"


def _number(value: float) -> str:
    return f"{value:.4g}"
