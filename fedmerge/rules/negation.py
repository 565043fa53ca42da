"""Task negation: clients that count against the merge, by their names.

Weights stay as they are, not negative; the values of the named clients change their sign. A rule knows names
only, and a client's coefficient is asked for by its place: `for_silos` puts the one in the place of the
other.
"""

from __future__ import annotations

from collections.abc import Iterable, Sequence
from dataclasses import dataclass, replace
from typing import TYPE_CHECKING, ClassVar

import torch
from torch import Tensor

from fedmerge.errors import RuleError, nearest
from fedmerge.rules.stack import Draw, Stack
from fedmerge.rules.stages import Stage

if TYPE_CHECKING:
    from fedmerge.rules.compose import Rule


@dataclass(frozen=True)
class Signs(Stage):
    """Multiply each client's values by 1 or -1, told for each place: what `Negate` is among known clients.

    Args:
        signs: one for each client.
    """

    signs: tuple[float, ...]

    phase: ClassVar[str] = "weigh"

    def __call__(self, stack: Stack, draw: Draw) -> Stack:
        """Return the stack with changed signs, in the values' dtype: nothing is rounded."""
        signs = torch.tensor(self.signs, dtype=stack.values.dtype, device=stack.values.device)
        return replace(stack, values=stack.values * signs.unsqueeze(1))

    def linear(self, coefficients: Tensor) -> Tensor | None:
        """The weights as they are; a chain multiplies its coefficients by `factors`."""
        return coefficients

    def factors(self, clients: int) -> Tensor:
        """The signs, float64 `(clients,)`."""
        if len(self.signs) != clients:
            raise RuleError(f"the rule was made for {len(self.signs)} clients, {clients} were given")
        return torch.tensor(self.signs, dtype=torch.float64)


@dataclass(frozen=True)
class Negate(Stage):
    """Let the named clients count against the merge: their values change sign, their weights stay.

    Whoever is named must be there: a misspelt name, or a client of weight 0, is refused.

    Args:
        silos: names with commas between, "silo-x, silo-y", or a tuple of names (which may hold commas).

    Raises:
        RuleError: no name, one of them twice, or something else than names.

    Example:
        >>> values = torch.tensor([[1.0, -2.0], [3.0, 4.0]])
        >>> stack = Stack(values, torch.ones(2, 1, dtype=torch.float64))
        >>> Negate(silos="b")(stack, Draw(0, 0, ("a", "b"), "x", (2,))).values
        tensor([[ 1., -2.],
                [-3., -4.]])

    Reference:
        Ilharco et al., "Editing Models with Task Arithmetic", 2022, arXiv:2212.04089 (forgetting via
        negation).
    """

    silos: str | tuple[str, ...]

    phase: ClassVar[str] = "weigh"

    def __post_init__(self) -> None:
        """Check the names."""
        if not isinstance(self.silos, str | tuple) or not all(isinstance(name, str) for name in self.silos):
            raise RuleError(f"negate: silos={self.silos!r}: expected names, 'silo-x, silo-y'")
        names = self.names
        if not names or not all(names) or len(set(names)) != len(names):
            raise RuleError(f"negate: silos={self.silos!r}: expected one name or more, each of them once")

    @property
    def names(self) -> tuple[str, ...]:
        """The clients that count against the merge."""
        if isinstance(self.silos, tuple):
            return self.silos
        return tuple(name.strip() for name in self.silos.split(","))

    def among(self, silos: Sequence[str]) -> Signs:
        """The signs of these clients.

        Raises:
            RuleError: a name that none of them has.
        """
        check_there(self.names, silos)
        return Signs(tuple(-1.0 if silo in self.names else 1.0 for silo in silos))

    def __call__(self, stack: Stack, draw: Draw) -> Stack:
        """Return the stack in which the named clients' values have the other sign."""
        return self.among(draw.silos)(stack, draw)


def check_there(names: Iterable[str], silos: Sequence[str]) -> None:
    """Raise unless all that a rule counts against the merge are among the clients.

    Raises:
        RuleError: the name of one that is not, with the nearest that is.

    Example:
        >>> check_there(["silo-x"], ["silo-a", "silo-z"])
        Traceback (most recent call last):
        fedmerge.errors.RuleError: negate: silo 'silo-x' is not among the clients; did you mean 'silo-z'? ...
    """
    for name in names:
        if name not in silos:
            raise RuleError(f"negate: silo {name!r} is not among the clients; {nearest(name, silos)}")


def negated_by(rule: Rule) -> frozenset[str]:
    """The names that a rule counts against the merge; a rule that says nothing of it names none.

    Example:
        >>> from fedmerge.rules import parse_rule
        >>> sorted(negated_by(parse_rule("chain(negate(silos='b, a'), median())")))
        ['a', 'b']
    """
    own = [stage.names for stage in getattr(rule, "stages", ()) if isinstance(stage, Negate)]
    return frozenset(getattr(rule, "negated", ())).union(*own)


def for_silos(rule: Rule, silos: Sequence[str]) -> Rule:
    """The rule for these clients: names in it have become places, so that it has coefficients.

    Args:
        rule: any; `resolve` it first where it chooses by tensor names.
        silos: the clients' names, in the order of the stack.

    Raises:
        RuleError: it names a client that is not there.

    Example:
        >>> from fedmerge.rules import task_arithmetic
        >>> rule = for_silos(task_arithmetic(scale=0.5, negate="b"), ("a", "b"))
        >>> rule.linear(torch.tensor([1.0, 3.0])).tolist()
        [0.25, -0.75]
    """
    stages = getattr(rule, "stages", ())
    if not any(isinstance(stage, Negate) for stage in stages):
        return rule
    placed = [stage.among(silos) if isinstance(stage, Negate) else stage for stage in stages]
    # Only a chain has stages; its text stays as it was.
    return replace(rule, stages=tuple(placed), spelling=str(rule))  # type: ignore[type-var]
