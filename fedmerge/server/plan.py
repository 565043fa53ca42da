"""The texts of the strategy settings, parsed: a misspelt rule is found before anything is sent or trained."""

from __future__ import annotations

from dataclasses import dataclass

from fedmerge.adapters import Lora
from fedmerge.adapters.optimizers import ServerOptimizer, parse_optimizer
from fedmerge.adapters.spaces import Factors, Space, parse_space
from fedmerge.errors import ConfigError
from fedmerge.rules import Rule, parse_rule
from fedmerge.server.outliers import OutlierPolicy, parse_guard
from fedmerge.server.settings import StrategySettings


@dataclass(frozen=True)
class Shadow:
    """A further way to merge the last round's replies, to be compared; `name` is its text."""

    name: str
    rule: Rule
    space: Space


@dataclass(frozen=True)
class Plan:
    """Rule, space, server optimizer, guard and shadows of a run.

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

    @classmethod
    def of(cls, settings: StrategySettings, rule: Rule | None = None) -> Plan:
        """Parse the settings' texts; `rule` takes the place of its text, for rules built in Python.

        Raises:
            RuleError: a rule, space or optimizer that is unknown or out of range, or an optimizer that does
            not
                work in the space.
            ConfigError: a guard or shadow that can't be read.
        """
        space, optimizer = parse_space(settings.space), parse_optimizer(settings.server_optimizer)
        optimizer.check_space(space)
        return cls(
            rule=rule or parse_rule(settings.rule),
            space=space,
            optimizer=optimizer,
            outliers=parse_guard(settings.guard),
            shadows=parse_shadows(settings.shadows),
        )

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
    return Shadow(f"{rule} @ {space}", rule, space)
