"""Rules as compositions of stages."""

from __future__ import annotations

from dataclasses import dataclass, field
from functools import reduce
from typing import ClassVar, Protocol, runtime_checkable

import torch
from torch import Tensor

from fedmerge.errors import RuleError
from fedmerge.rules.stack import Draw, Stack
from fedmerge.rules.stages import PHASES, Stage
from fedmerge.text import render

CHUNK_ENTRIES = 2**22
"""Clients times coordinates merged at once where the stages allow it: bounds the float64 working memory to
some 100 MB."""


@runtime_checkable
class Rule(Protocol):
    """A finished merge method.

    Attributes:
        kind: "elementwise" (on a `Stack`), "coefficients" (on the Gram matrix) or "matrix" (on 2-D cores).
        scope: "tensor", or "adapter" where all tensors must be given as one row.
        separable: whether chunks of coordinates may be merged apart, with the same bits.
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


@dataclass(frozen=True)
class Chain:
    """An elementwise rule: stages one after the other, the last of them leaving one row.

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

    kind: ClassVar[str] = "elementwise"

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
        stack = _run(self.stages[:split], stack, draw)
        merged = torch.empty(stack.coordinates, dtype=dtype, device=stack.values.device)
        size = max(1, CHUNK_ENTRIES // stack.clients)
        for start in range(0, stack.coordinates, size):
            stop = min(start + size, stack.coordinates)
            chunk = _run(self.stages[split:], stack.columns(start, stop), draw.at(start))
            merged[start:stop] = round_once(chunk.values[0], dtype)
        return merged

    @property
    def separable(self) -> bool:
        """Whether chunks of coordinates may be merged apart, with the same bits."""
        return all(stage.separable for stage in self.stages)

    @property
    def scope(self) -> str:
        """What it must see at once: "adapter" where a stage wants all tensors as one row."""
        return "adapter" if any(stage.scope == "adapter" for stage in self.stages) else "tensor"

    def linear(self, weights: Tensor) -> Tensor | None:
        """Coefficients of the result, where they depend on the weights alone.

        Args:
            weights: raw, `(clients,)`.

        Returns:
            float64 `(clients,)`, c with result `sum c_i tau_i` whatever the values; or None.
        """
        coefficients: Tensor | None = weights.to(torch.float64)
        for stage in self.stages:
            coefficients = None if coefficients is None else stage.linear(coefficients)
        return coefficients

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


def round_once(values: Tensor, dtype: torch.dtype) -> Tensor:
    """Round float64 to a dtype, once.

    torch goes from float64 to the 16-bit types by way of float32, and rounds twice. Rounding to odd on the
    way makes the second rounding see what the first one lost.

    Args:
        values: any shape.
        dtype: floating.

    Returns:
        The nearest values of that dtype, ties to even.

    Example:
        >>> value = torch.tensor([1 + 2**-9 + 2**-40], dtype=torch.float64)
        >>> round_once(value, torch.bfloat16) == value.to(torch.bfloat16)
        tensor([True])
        >>> value = torch.tensor([1 + 2**-8 + 2**-40], dtype=torch.float64)
        >>> round_once(value, torch.bfloat16) > value.to(torch.bfloat16)
        tensor([True])
    """
    if values.dtype != torch.float64 or dtype not in (torch.bfloat16, torch.float16):
        return values.to(dtype)
    single = values.to(torch.float32)
    back = single.to(torch.float64)
    bits = single.view(torch.int32) - (back.abs() > values.abs()).to(torch.int32)
    return (bits | (back != values).to(torch.int32)).view(torch.float32).to(dtype)


def _run(stages: tuple[Stage, ...], stack: Stack, draw: Draw) -> Stack:
    return reduce(lambda so_far, stage: stage(so_far, draw), stages, stack)


def _check_weights(weights: Tensor) -> None:
    good = (weights >= 0) & weights.isfinite()
    if not bool(good.all()):
        wrong = weights[~good][0].item()
        raise RuleError(f"a weight is {wrong}; weights are finite and not negative")
