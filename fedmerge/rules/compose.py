"""Rules as compositions of stages."""

from __future__ import annotations

from dataclasses import dataclass, field
from typing import Protocol, runtime_checkable

import torch
from torch import Tensor

from fedmerge.errors import RuleError
from fedmerge.rules.gram import GramStage
from fedmerge.rules.negation import Negate, Signs, negated_by
from fedmerge.rules.rounding import round_once
from fedmerge.rules.stack import Draw, Stack
from fedmerge.rules.stages import PHASES, Stage
from fedmerge.rules.streaming import Stream, run_stages, streams
from fedmerge.text import render

__all__ = ["CHUNK_ENTRIES", "Chain", "CoefficientsRule", "Rule", "chain", "round_once"]

CHUNK_ENTRIES = 2**22
"""Clients times coordinates merged at once where the stages allow it: bounds the float64 working memory to
some 100 MB."""


@runtime_checkable
class Rule(Protocol):
    """A finished merge method.

    Attributes:
        kind: "elementwise" (coordinate by coordinate, on a `Stack`), "coefficients" (from the Gram matrix
            alone, see `CoefficientsRule`), "matrix" (on the updates of 2-D weights), "factor" (on A and B of
            a LoRA pair) or "by_name" (another rule for each name).
        scope: "tensor", or "adapter" where all tensors must be given as one row.
        separable: whether chunks of coordinates may be merged apart, with the same bits.

    A rule that wants statistics of the silos says which by a further attribute, `needs =
    frozenset({"fisher"})` (statistics.py).
    """

    @property
    def kind(self) -> str:
        """What the rule works on."""
        ...

    @property
    def scope(self) -> str:
        """What the rule must see at once."""
        ...

    @property
    def separable(self) -> bool:
        """Whether chunks of coordinates may be merged apart."""
        ...

    def __call__(self, stack: Stack, draw: Draw) -> Tensor:
        """Merge `(clients, coordinates)` to `(coordinates,)`, of the values' dtype."""
        ...

    def linear(self, weights: Tensor) -> Tensor | None:
        """Coefficients c `(clients,)`, result `sum c_i tau_i` whatever the values; None if there are none."""
        ...


@runtime_checkable
class CoefficientsRule(Rule, Protocol):
    """A rule of kind "coefficients": `sum c_i tau_i`, where c depends on inner products and weights alone."""

    def coefficients(self, gram: Tensor, weights: Tensor) -> Tensor:
        """Coefficients c, float64 `(clients,)`, from `(clients, clients)` and raw weights `(clients,)`."""
        ...


@dataclass(frozen=True)
class Chain:
    """A rule of stages, one after the other, the last of them leaving one row.

    Made by `chain`, or by a rule of the catalogue, which gives it its spelling; two chains of equal stages
    are equal however they are spelt.

    Args:
        stages: in the order of their phases (weigh, sparsify, elect, combine, scale); exactly one combines.
        spelling: the rule text, if shorter than the chain's own.

    Raises:
        RuleError: stages that make no rule.
    """

    stages: tuple[Stage, ...]
    spelling: str = field(default="", compare=False)

    def __post_init__(self) -> None:
        """Check that the stages make a rule."""
        for stage in self.stages:
            if not isinstance(stage, Stage) or stage.phase not in PHASES:
                raise RuleError(f"chain: {stage!r} is no stage")
        combining = [str(stage) for stage in self.stages if stage.phase == "combine"]
        if len(combining) != 1:
            found = " and ".join(combining) or "none"
            raise RuleError(f"chain: exactly one stage combines the clients (mean(), say); here {found} does")
        for first, second in zip(self.stages, self.stages[1:], strict=False):
            if PHASES.index(first.phase) > PHASES.index(second.phase):
                raise RuleError(
                    f"chain: {second} ({second.phase}) can't come after {first} ({first.phase}); "
                    f"the order is {', '.join(PHASES)}"
                )
            if first.phase == "elect" and isinstance(second, GramStage):
                raise RuleError(
                    f"chain: {second} weighs whole deltas, so it can't come after {first}, which weighs each "
                    "coordinate"
                )

    def __call__(self, stack: Stack, draw: Draw) -> Tensor:
        """Merge.

        Args:
            stack: values `(clients, coordinates)` and raw weights.
            draw: what random numbers are drawn for.

        Returns:
            `(coordinates,)`, of the values' dtype, rounded once.

        Raises:
            RuleError: weights that are negative or not finite; a chunk given to a rule that needs the whole
                tensor; more or fewer silos in the draw than clients in the stack.
        """
        _check_weights(stack.weights)
        if len(draw.silos) != stack.clients:
            raise RuleError(
                f"{self}: the stack has {stack.clients} clients, the draw {len(draw.silos)} silos"
            )
        if draw.offset and not self.separable:
            raise RuleError(f"{self} needs the whole tensor {draw.tensor!r}, got a chunk at {draw.offset}")
        with torch.no_grad():
            return self._merge(stack, draw)

    def _merge(self, stack: Stack, draw: Draw) -> Tensor:
        """Run the stages up to the last that needs the whole tensor on it, and the others chunk by chunk."""
        dtype = stack.values.dtype
        needs_whole = [index for index, stage in enumerate(self.stages) if not stage.separable]
        split = needs_whole[-1] + 1 if needs_whole else 0
        stack = run_stages(self.stages[:split], stack, draw)
        merged = torch.empty(stack.coordinates, dtype=dtype, device=stack.values.device)
        size = max(1, CHUNK_ENTRIES // stack.clients)
        for start in range(0, stack.coordinates, size):
            stop = min(start + size, stack.coordinates)
            chunk = run_stages(self.stages[split:], stack.columns(start, stop), draw.at(start))
            merged[start:stop] = round_once(chunk.values[0], dtype)
        return merged

    @property
    def kind(self) -> str:
        """What it works on: "coefficients" where inner products and weights decide, else "elementwise"."""
        one = torch.ones(1, dtype=torch.float64)
        by_gram = [isinstance(stage, GramStage) for stage in self.stages]
        others = [stage for stage, found in zip(self.stages, by_gram, strict=True) if not found]
        settled = any(by_gram) and all(
            isinstance(stage, Negate) or stage.linear(one) is not None for stage in others
        )
        return "coefficients" if settled else "elementwise"

    def coefficients(self, gram: Tensor, weights: Tensor) -> Tensor:
        """Coefficients of the result, where the rule's kind is "coefficients".

        Args:
            gram: inner products of the deltas, `(clients, clients)`.
            weights: raw, `(clients,)`.

        Returns:
            float64 `(clients,)` on the CPU, c with result `sum c_i tau_i`; 0 for clients of weight 0.

        Raises:
            RuleError: a rule that looks further than inner products; weights that are negative or not finite;
                clients that the rule can't treat.

        Example:
            >>> from fedmerge.rules import krum
            >>> far = torch.tensor([[1.0, 1.0, 9.0], [1.0, 1.0, 9.0], [9.0, 9.0, 81.0]])
            >>> krum(attackers=0).coefficients(far, torch.ones(3)).tolist()
            [1.0, 0.0, 0.0]
        """
        if self.kind != "coefficients":
            raise RuleError(f"{self} is no rule of inner products: it looks at each coordinate")
        if negated_by(self):
            raise RuleError(
                f"{self} names clients, and is asked for coefficients by place: for_silos() first"
            )
        _check_weights(weights)
        carried: Tensor | None = weights.to("cpu", torch.float64)
        factors = torch.ones_like(weights, dtype=torch.float64, device="cpu")
        for stage in self.stages:
            assert carried is not None  # `kind` asked every stage
            if isinstance(stage, Signs):
                found = stage.factors(len(weights))
            elif isinstance(stage, GramStage):
                found = stage.coefficients(gram, carried)
            else:
                carried = stage.linear(carried)
                continue
            if stage.phase == "combine":
                carried = found
            else:
                gram, factors = found * gram.to(found) * found.unsqueeze(1), factors * found
        assert carried is not None
        return factors * carried

    @property
    def separable(self) -> bool:
        """Whether chunks of coordinates may be merged apart, with the same bits."""
        return all(stage.separable for stage in self.stages)

    @property
    def scope(self) -> str:
        """What it must see at once: "adapter" where a stage wants all tensors as one row."""
        return "adapter" if any(stage.scope == "adapter" for stage in self.stages) else "tensor"

    @property
    def streams(self) -> bool:
        """Whether clients may be merged one after the other, without keeping them."""
        return streams(self.stages)

    def begin(self, draw: Draw, dtype: torch.dtype, device: torch.device | str = "cpu") -> Stream:
        """Begin to merge a stream of clients: `add` each, then `finish`, with the bits of a call.

        Args:
            draw: as for a call, but without silos.
            dtype: of the values.
            device: where they are added up.

        Raises:
            RuleError: the rule must see all clients at once.
        """
        if not self.streams:
            raise RuleError(
                f"{self} can't merge a stream: only per-client stages, mean() or total(), and scale() can"
            )
        return Stream(self.stages, draw, dtype, device)

    def linear(self, weights: Tensor) -> Tensor | None:
        """Coefficients of the result, where they depend on the weights alone.

        Args:
            weights: raw, `(clients,)`.

        Returns:
            float64 `(clients,)`, c with result `sum c_i tau_i` whatever the values; or None. None also where
            it names clients, before `for_silos`.
        """
        coefficients: Tensor | None = weights.to(torch.float64)
        for stage in self.stages:
            coefficients = None if coefficients is None else stage.linear(coefficients)
        if coefficients is None:
            return None
        for stage in self.stages:
            if isinstance(stage, Signs):
                coefficients = coefficients * stage.factors(len(weights)).to(coefficients)
        return coefficients

    @property
    def needs(self) -> frozenset[str]:
        """The statistics of the silos that its stages want: "fisher"."""
        return frozenset[str]().union(*(getattr(stage, "needs", ()) for stage in self.stages))

    def __str__(self) -> str:
        """The rule as text that `parse_rule` reads back."""
        return self.spelling or render("chain", {}, arguments=self.stages)


def chain(*stages: Stage | Chain) -> Chain:
    """Put stages together to a rule; a rule given among them stands for its stages.

    Args:
        stages: in the order weigh, sparsify, elect, combine, scale; exactly one combines.

    Returns:
        The rule.

    Raises:
        RuleError: stages that make no rule.

    Example:
        >>> from fedmerge.rules import ElectSign, KeepLargest, Mean, ties
        >>> rule = chain(KeepLargest(density=0.2), ElectSign(), Mean())
        >>> print(rule)
        chain(keep_largest(density=0.2), elect_sign(), mean())
        >>> rule == ties(density=0.2)
        True
    """
    flat: list[Stage] = []
    for stage in stages:
        flat += stage.stages if isinstance(stage, Chain) else [stage]
    return Chain(tuple(flat))


def _check_weights(weights: Tensor) -> None:
    good = (weights >= 0) & weights.isfinite()
    if not bool(good.all()):
        wrong = weights[~good][0].item()
        raise RuleError(f"a weight is {wrong}; weights are finite and not negative")
