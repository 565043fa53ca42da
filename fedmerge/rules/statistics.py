"""Rules and stages that need more than deltas: what each silo measured on its own rows."""

from __future__ import annotations

from dataclasses import dataclass
from typing import ClassVar

import torch
from torch import Tensor

from fedmerge.errors import RuleError
from fedmerge.rules.checks import require_between, require_choice, require_share
from fedmerge.rules.combine import Mean, divide
from fedmerge.rules.compose import Rule, round_once
from fedmerge.rules.stack import Draw, Stack
from fedmerge.rules.stages import Stage
from fedmerge.text import render

FISHER, GRAM = "fisher", "gram"
STATISTICS = {
    FISHER: "the diagonal Fisher of every tensor",
    GRAM: "the Gram matrix of A x of every LoRA module",
}
"""What a rule may want of the silos, and what that is."""

NORMS = ("none", "tensor", "adapter")


def needs_of(rule: Rule) -> frozenset[str]:
    """The statistics that a rule wants; a rule that says nothing of it wants none.

    Example:
        >>> from fedmerge.rules import fedavg, fisher
        >>> sorted(needs_of(fedavg())), sorted(needs_of(fisher()))
        ([], ['fisher'])
    """
    return frozenset(getattr(rule, "needs", ()))


@dataclass(frozen=True)
class FisherWeights(Stage):
    """Multiply each client's weight by its diagonal Fisher: `w_i max(F_i, floor)` per coordinate.

    Args:
        floor: least Fisher of a coordinate, from 0; where all are at the floor, weights decide alone.
        normalize: what each client's Fisher is divided by: "none" nothing, "tensor" its Euclidean length
            over the tensor, "adapter" over the whole adapter, so that a steep loss counts no more than a
            flat one. The floor is laid before.

    Raises:
        RuleError: an argument out of range.

    Example:
        >>> stack = Stack(
        ...     torch.zeros(2, 2),
        ...     torch.tensor([[1.0], [3.0]], dtype=torch.float64),
        ...     {"fisher": torch.tensor([[0.5, 0.0], [0.5, 2.0]])},
        ... )
        >>> FisherWeights(floor=0.25)(stack, Draw(0, 0, ("a", "b"), "x", (2,))).weights
        tensor([[0.5000, 0.2500],
                [1.5000, 6.0000]], dtype=torch.float64)

    Reference:
        Matena, Raffel, "Merging Models with Fisher-Weighted Averaging", 2021, arXiv:2111.09832.
    """

    floor: float = 1e-6
    normalize: str = "none"

    phase: ClassVar[str] = "weigh"
    per_client: ClassVar[bool] = True
    needs: ClassVar[frozenset[str]] = frozenset({FISHER})

    def __post_init__(self) -> None:
        """Check the arguments."""
        require_between("fisher_weights", "floor", self.floor, 0, torch.inf)
        require_choice("fisher_weights", "normalize", self.normalize, NORMS)

    @property
    def separable(self) -> bool:
        """Not where lengths are taken over more than a chunk."""
        return self.normalize == "none"

    @property
    def scope(self) -> str:
        """The whole adapter where lengths are taken over it."""
        return "adapter" if self.normalize == "adapter" else "tensor"

    def __call__(self, stack: Stack, draw: Draw) -> Stack:
        """Return the stack with weights `(clients, coordinates)`."""
        fisher = _statistic(stack, draw, FISHER, str(self))
        low, high = (fisher.min().item(), fisher.max().item()) if fisher.numel() else (0.0, 0.0)
        if not 0 <= low <= high < torch.inf:  # also NaN, which both would be
            raise RuleError(
                f"{self}: the Fisher of {draw.tensor!r} reaches from {low} to {high}; it is a mean of "
                "squares, finite and not negative"
            )
        weights = fisher.to(torch.float64).clamp(min=self.floor)
        if not self.separable:
            weights = divide(weights, torch.linalg.vector_norm(weights, dim=1, keepdim=True))
        return Stack(stack.values, stack.weights * weights, stack.statistics)


@dataclass(frozen=True)
class RegMean:
    """The rule of `fedmerge.rules.regmean`.

    Args:
        off_diagonal: what the Gram matrices' off-diagonals are multiplied by, in (0, 1].

    Raises:
        RuleError: an argument out of range.
    """

    off_diagonal: float = 0.95

    kind: ClassVar[str] = "factor"
    scope: ClassVar[str] = "tensor"
    separable: ClassVar[bool] = False
    needs: ClassVar[frozenset[str]] = frozenset({GRAM})

    def __post_init__(self) -> None:
        """Check the argument."""
        require_share("regmean", "off_diagonal", self.off_diagonal)

    def __call__(self, stack: Stack, draw: Draw) -> Tensor:
        """Merge one tensor.

        Args:
            stack: values `(clients, outputs * rank)` with the statistic "gram" for a factor B; for any other
                tensor values without it.
            draw: its shape is that of B, `(outputs, rank)`.

        Returns:
            `(coordinates,)`, of the values' dtype, rounded once.

        Raises:
            RuleError: Gram matrices of another rank, or that are not finite.
        """
        with torch.no_grad():
            if GRAM not in stack.statistics:
                merged = Mean()(stack, draw).values[0]
            else:
                merged = self._solve(stack, self._grams(stack, draw)).reshape(-1)
        return round_once(merged, stack.values.dtype)

    def linear(self, weights: Tensor) -> Tensor | None:
        """None: the Gram matrices decide too."""
        return None

    def _grams(self, stack: Stack, draw: Draw) -> Tensor:
        """`w_i G_i` with the off-diagonals made smaller, float64 `(clients, rank, rank)`."""
        grams = _statistic(stack, draw, GRAM, str(self)).to(torch.float64)
        if len(draw.shape) != 2 or grams.shape[1:] != (draw.shape[1], draw.shape[1]):
            raise RuleError(
                f"{self}: {draw.tensor!r} has shape {draw.shape}, its Gram matrices "
                f"{tuple(grams.shape[1:])}, expected (outputs, rank) and (rank, rank)"
            )
        if not bool(grams.isfinite().all()):
            raise RuleError(f"{self}: a Gram matrix of {draw.tensor!r} is not finite")
        diagonal = torch.diag_embed(grams.diagonal(dim1=1, dim2=2))
        shrunk = self.off_diagonal * grams + (1 - self.off_diagonal) * diagonal
        return stack.weights.reshape(-1, 1, 1) * shrunk

    @staticmethod
    def _solve(stack: Stack, grams: Tensor) -> Tensor:
        """`(sum B_i G_i) (sum G_i)^+`, added up in the order of the clients."""
        rank = grams.shape[1]
        factors = stack.values.to(torch.float64).reshape(stack.clients, -1, rank)
        pulled, total = factors.new_zeros(factors.shape[1:]), grams.new_zeros(rank, rank)
        for factor, gram in zip(factors, grams, strict=True):
            pulled += factor @ gram
            total += gram
        # What no input ever reaches has no say: there the pseudo-inverse leaves B as it was received.
        solved: Tensor = pulled @ torch.linalg.pinv((total + total.T) / 2, hermitian=True)
        return solved

    def __str__(self) -> str:
        """The rule as text that `parse_rule` reads back."""
        return render("regmean", {"off_diagonal": self.off_diagonal}, {"off_diagonal": 0.95})


def _statistic(stack: Stack, draw: Draw, name: str, owner: str) -> Tensor:
    """A statistic of the stack.

    Raises:
        RuleError: it was not given.
    """
    if name not in stack.statistics:
        raise RuleError(
            f"{owner} needs {STATISTICS[name]} of each silo (the statistic {name!r}), and none was given for "
            f"{draw.tensor!r}"
        )
    return stack.statistics[name]
