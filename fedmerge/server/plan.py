"""The texts of the strategy settings, parsed: a misspelt rule is found before anything is sent or trained."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass

import torch

from fedmerge.adapters import Lora
from fedmerge.adapters.optimizers import ServerOptimizer, parse_optimizer
from fedmerge.adapters.spaces import Factors, Space, parse_space
from fedmerge.adapters.statistics import check_needs
from fedmerge.errors import ConfigError, RoundFailed, RuleError
from fedmerge.rules import Draw, Rule, Stack, parse_rule
from fedmerge.rules.negation import check_there, negated_by
from fedmerge.rules.statistics import needs_of
from fedmerge.server.gate import Gate, parse_gate
from fedmerge.server.outliers import OutlierPolicy, parse_guard
from fedmerge.server.settings import StrategySettings


@dataclass(frozen=True)
class Shadow:
    """A further way to merge a round's replies, to be compared; `name` is its text."""

    name: str
    rule: Rule
    space: Space


@dataclass(frozen=True)
class Plan:
    """Rule, space, server optimizer, guard, gate and shadows of a run.

    Example:
        >>> plan = Plan.of(StrategySettings(shadows="ties(density=0.2); fedavg() @ product()"))
        >>> [shadow.name for shadow in plan.shadows]
        ['ties(density=0.2) @ factors()', 'fedavg() @ product()']
    """

    rule: Rule
    space: Space
    optimizer: ServerOptimizer
    outliers: OutlierPolicy
    shadows: tuple[Shadow, ...]
    gate: Gate

    @classmethod
    def of(cls, settings: StrategySettings, rule: Rule | None = None) -> Plan:
        """Parse the settings' texts; `rule` takes the place of its text, for rules built in Python.

        Raises:
            RuleError: a rule, space or optimizer that is unknown or out of range, or an optimizer or a rule
                that does not work in the space.
            ConfigError: a guard, gate or shadow that can't be read.
        """
        space, optimizer = parse_space(settings.space), parse_optimizer(settings.server_optimizer)
        optimizer.check_space(space)
        rule = rule or parse_rule(settings.rule)
        check_needs(rule, space)
        return cls(
            rule=rule,
            space=space,
            optimizer=optimizer,
            outliers=parse_guard(settings.guard),
            shadows=parse_shadows(settings.shadows),
            gate=parse_gate(settings.gate),
        )

    @property
    def needs(self) -> frozenset[str]:
        """The statistics that rule and shadows want of every reply."""
        return needs_of(self.rule).union(*(needs_of(shadow.rule) for shadow in self.shadows))

    def check_rounds(self, rounds: int) -> None:
        """Refuse what can't run so many rounds on adapters of LoRA pairs; shadows merge but once each.

        Raises:
            RuleError: a rule that does not work in its space.
            ConfigError: a space whose adapters grow, and more than one round.
        """
        self.space.check_rule(self.rule)
        for shadow in self.shadows:
            shadow.space.check_rule(shadow.rule)
        if rounds > 1 and self.space.grows:
            raise ConfigError(
                f"space {self.space} keeps the merge exact by a rank that grows: over {rounds} rounds "
                "(run.rounds) it would grow each time; use product() or core(), or a single round"
            )

    def check_private(self, private: str) -> None:
        """Refuse spaces that work on whole LoRA pairs where silos keep A or B to themselves.

        Args:
            private: the text of lora.private.

        Raises:
            ConfigError: then rule or shadows work elsewhere than in factors().
        """
        spaces = [self.space, *(shadow.space for shadow in self.shadows)]
        unfit = [space for space in spaces if not isinstance(space, Factors)]
        if unfit and {"A", "B"}.intersection(part.strip() for part in private.split(",")):
            raise ConfigError(
                f"space {unfit[0]} works on whole LoRA pairs, and with lora.private = {private!r} the server "
                "has none: set strategy.space to factors(), and strategy.shadows likewise or to nothing"
            )

    def check_names(self, asked: Sequence[str] | None) -> None:
        """Refuse a rule that names a silo which the round does not ask, before anybody trains.

        Args:
            asked: names of the silos that the round asks; None where nobody knows them yet.

        Raises:
            RoundFailed: with the name.
        """
        try:
            check_there(sorted(negated_by(self.rule)) if asked is not None else (), asked or ())
        except RuleError as problem:
            raise RoundFailed(f"{self.rule} can't merge this round: {problem}. Nothing was trained") from None

    def check_clients(self, asked: int, need: int) -> None:
        """Refuse a rule that could not merge as many replies as may come, before anybody trains.

        The rule is tried on small made-up deltas: what it says of their number it would say of the silos'.

        Args:
            asked: silos that the round asks.
            need: replies that its quorum wants.

        Raises:
            RoundFailed: the rule can't merge so many, or so few; with what the rule says.
        """
        if self.rule.kind == "by_name" or needs_of(self.rule):
            return  # the first depends on the tensors; the others weigh coordinates, and take any number
        for count in (asked, need):
            values = torch.randn(count, 8, generator=torch.Generator().manual_seed(0))
            named = sorted(negated_by(self.rule)) + [f"silo {client}" for client in range(count)]
            stack = Stack(values, torch.ones(count, 1, dtype=torch.float64))
            try:
                self.rule(
                    stack, Draw(seed=0, round=0, silos=tuple(named[:count]), tensor="trial", shape=(8,))
                )
            except RuleError as problem:
                raise RoundFailed(
                    f"{self.rule} can't merge {count} replies: {problem}. The round asks {asked} silos, and "
                    f"its quorum is {need}; nothing was trained"
                ) from None

    def check_lora(self, lora: Lora | None) -> None:
        """Refuse a space that works on LoRA products where nobody says how these are scaled.

        Raises:
            ConfigError: such a space, and no LoRA settings.
        """
        spaces = [self.space, *(shadow.space for shadow in self.shadows)]
        in_need = [space for space in spaces if not isinstance(space, Factors)]
        if in_need and lora is None:
            raise ConfigError(f"space {in_need[0]} needs the LoRA settings: lora=Lora(rank, alpha)")


def parse_shadows(text: str) -> tuple[Shadow, ...]:
    """Read "rule @ space; rule @ space"; without "@ space" a shadow works in factors().

    Raises:
        RuleError: a rule or space that is unknown or out of range.
        ConfigError: the same shadow twice, or an entry with more than one "@".
    """
    shadows: list[Shadow] = []
    for entry in (part.strip() for part in text.split(";")):
        if not entry:
            continue
        rule, *spaces = (part.strip() for part in entry.split("@"))
        if len(spaces) > 1:
            raise ConfigError(f"strategy.shadows: {entry!r}, expected 'rule @ space'")
        shadow = _shadow(rule, spaces[0] if spaces else "factors()")
        if shadow.name in [known.name for known in shadows]:
            raise ConfigError(f"strategy.shadows: {shadow.name!r} is given twice")
        shadows.append(shadow)
    return tuple(shadows)


def _shadow(rule_text: str, space_text: str) -> Shadow:
    rule, space = parse_rule(rule_text), parse_space(space_text)
    check_needs(rule, space)
    return Shadow(f"{rule} @ {space}", rule, space)
