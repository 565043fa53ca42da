"""A rule by the name of a tensor, and over the depth of a model: built in Python, not written as text.

Names are tensor names in `factors()` and module names in spaces that merge a layer's update as a whole.
"""

from __future__ import annotations

import re
from abc import ABC, abstractmethod
from collections.abc import Callable, Mapping
from dataclasses import dataclass
from fnmatch import fnmatchcase
from typing import ClassVar

from torch import Tensor

from fedmerge.errors import RuleError
from fedmerge.rules.compose import Rule
from fedmerge.rules.negation import negated_by
from fedmerge.rules.registry import parse_rule
from fedmerge.rules.stack import Draw, Stack

LAYER = re.compile(r"(?:^|\.)(?:layers|layer|blocks|block|h)\.(\d+)(?=\.|$)")
"""Where a name says in which layer it lies: `model.layers.7.`, BERT's `layer.7.`, GPT-2's `h.7.`."""


class _Named(ABC):
    """What rules that only choose another rule have in common."""

    kind: ClassVar[str] = "by_name"
    scope: ClassVar[str] = "tensor"
    separable: ClassVar[bool] = False

    @abstractmethod
    def at(self, name: str) -> Rule:
        """The rule for a name."""

    @abstractmethod
    def _choices(self) -> tuple[Rule, ...]:
        """All rules that can come out."""

    @property
    def needs(self) -> frozenset[str]:
        """The statistics that any of the rules wants."""
        return frozenset[str]().union(*(getattr(rule, "needs", frozenset()) for rule in self._choices()))

    @property
    def negated(self) -> frozenset[str]:
        """The clients that any of the rules counts against the merge."""
        return frozenset[str]().union(*map(negated_by, self._choices()))

    def linear(self, weights: Tensor) -> Tensor | None:
        """None: the coefficients may differ from name to name; `resolve` first."""
        return None

    def __call__(self, stack: Stack, draw: Draw) -> Tensor:
        """Merge by the rule for the name of the draw's tensor."""
        return self.at(draw.tensor)(stack, draw)


@dataclass(frozen=True)
class ByName(_Named):
    """A rule for each name, the first pattern that matches deciding. Made by `by_name`."""

    rules: tuple[tuple[str, Rule], ...]
    default: Rule | None = None

    def at(self, name: str) -> Rule:
        """The rule for a name, never itself a choice by name.

        Raises:
            RuleError: no pattern matches, and there is no default.
        """
        for pattern, rule in self.rules:
            if fnmatchcase(name, pattern):
                return resolve(rule, name)
        if self.default is None:
            patterns = ", ".join(repr(pattern) for pattern, _ in self.rules)
            raise RuleError(f"by_name: no rule for {name!r}; it matches none of {patterns}, and no default")
        return resolve(self.default, name)

    def _choices(self) -> tuple[Rule, ...]:
        rules = tuple(rule for _, rule in self.rules)
        return rules if self.default is None else (*rules, self.default)

    def __str__(self) -> str:
        """For logs and reports; no text that `parse_rule` reads."""
        inside = ", ".join(f"{pattern!r}: {rule}" for pattern, rule in self.rules)
        return f"by_name({{{inside}}}, default={self.default})"


@dataclass(frozen=True)
class ByDepth(_Named):
    """A rule for each layer. Made by `by_depth` and `over_depth`."""

    rules: tuple[Rule, ...]
    other: Rule

    def at(self, name: str) -> Rule:
        """The rule of the layer that a name lies in, `other` where it names no layer.

        Raises:
            RuleError: a layer beyond those that there are rules for.
        """
        layer = layer_of(name)
        if layer is None:
            return resolve(self.other, name)
        if layer >= len(self.rules):
            raise RuleError(
                f"by_depth: {name!r} lies in layer {layer}, there are rules for {len(self.rules)}"
            )
        return resolve(self.rules[layer], name)

    def _choices(self) -> tuple[Rule, ...]:
        return (*self.rules, self.other)

    def __str__(self) -> str:
        """For logs and reports; no text that `parse_rule` reads."""
        first, last = self.rules[0], self.rules[-1]
        return f"by_depth({first} to {last} over {len(self.rules)} layers, other={self.other})"


def by_name(rules: Mapping[str, Rule | str], default: Rule | str | None = None) -> ByName:
    """Different rules for different tensors.

    Args:
        rules: name, or pattern with `*`, `?` and `[...]` as in file names (`*` also spans dots) -> rule, as
            an object or as text. The first that matches decides, in the order given.
        default: for names that match nothing; None refuses them.

    Returns:
        The rule. A rule of scope "adapter" among them sees all tensors that fall to it as one row.

    Raises:
        RuleError: no pattern, or something that is no rule.

    Example:
        >>> rule = by_name({"*.lora_A.*": "fedavg()", "*.lora_B.*": "ties(density=0.2)"}, default="median()")
        >>> print(rule.at("layers.0.q_proj.lora_B.weight"))
        ties(density=0.2)
        >>> print(resolve(rule, "head.weight"))
        median()
    """
    if not isinstance(rules, Mapping) or not rules:
        raise RuleError(f"by_name: {rules!r} was given, expected a mapping of at least one pattern to a rule")
    made = tuple((_pattern(pattern), as_rule(rule, "by_name")) for pattern, rule in rules.items())
    return ByName(made, None if default is None else as_rule(default, "by_name"))


def by_depth(make: Callable[[int], Rule | str], *, layers: int, other: Rule | str) -> ByDepth:
    """A rule for each layer of a model.

    The layer is the first number after `layers.`, `layer.`, `blocks.`, `block.` or `h.` in a name.

    Args:
        make: layer index from 0 -> rule; called at once for each layer, so that a bad knob shows now.
        layers: how many there are, at least 1.
        other: for names that lie in no layer (heads, embeddings, norms at the end).

    Returns:
        The rule.

    Raises:
        RuleError: a number of layers below 1, or something that is no rule.

    Example:
        >>> rule = by_depth(lambda layer: "fedavg()" if layer < 2 else "median()", layers=4, other="fedavg()")
        >>> print(rule.at("model.layers.3.mlp.up_proj.weight"))
        median()
    """
    if isinstance(layers, bool) or not isinstance(layers, int) or layers < 1:
        raise RuleError(f"by_depth: layers={layers!r} is out of range: a whole number from 1")
    rules = tuple(as_rule(make(layer), "by_depth") for layer in range(layers))
    return ByDepth(rules, as_rule(other, "by_depth"))


def over_depth(
    make: Callable[[float], Rule | str], *, first: float, last: float, layers: int, other: Rule | str
) -> ByDepth:
    """A rule whose knob changes evenly from the first layer to the last.

    Args:
        make: the knob's value -> rule.
        first: the knob in layer 0.
        last: the knob in layer `layers - 1`.
        layers: how many there are, at least 1; a single one gets `first`.
        other: for names that lie in no layer.

    Returns:
        The rule.

    Raises:
        RuleError: as `by_depth`, and what `make` raises.

    Example:
        >>> from fedmerge.rules import ties
        >>> rule = over_depth(lambda d: ties(density=d), first=0.5, last=0.1, layers=3, other="fedavg()")
        >>> print(rule.at("layers.1.q_proj"), rule.at("head.weight"))
        ties(density=0.3) fedavg()
    """
    steps = max(layers - 1, 1) if isinstance(layers, int) else 1
    return by_depth(
        lambda layer: make(first * ((steps - layer) / steps) + last * (layer / steps)),
        layers=layers,
        other=other,
    )


def resolve(rule: Rule, name: str) -> Rule:
    """The rule that merges the tensor or module of this name: the rule itself where it makes no choice.

    Example:
        >>> from fedmerge.rules import fedavg
        >>> resolve(fedavg(), "head.weight") == resolve(by_name({"head.*": fedavg()}), "head.weight")
        True
    """
    return rule.at(name) if isinstance(rule, _Named) else rule


def layer_of(name: str) -> int | None:
    """The layer that a tensor or module lies in, by its name.

    Example:
        >>> layer_of("base_model.model.layers.7.q_proj"), layer_of("transformer.h.11"), layer_of("head.0.x")
        (7, 11, None)
    """
    found = LAYER.search(name)
    return int(found[1]) if found else None


def as_rule(given: Rule | str, owner: str) -> Rule:
    """A rule from an object or from text.

    Raises:
        RuleError: neither.
    """
    if isinstance(given, str):
        return parse_rule(given)
    if not isinstance(given, Rule):
        raise RuleError(f"{owner}: {given!r} is no rule, expected a rule or its text")
    return given


def _pattern(pattern: object) -> str:
    if not isinstance(pattern, str):
        raise RuleError(f"by_name: {pattern!r} is no string, expected a name or a pattern")
    return pattern
