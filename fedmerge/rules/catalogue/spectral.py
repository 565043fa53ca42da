"""Matrix rules that move the updates into shared coordinates and merge them there by another rule."""

from __future__ import annotations

from dataclasses import dataclass
from typing import ClassVar

import torch
from torch import Tensor

from fedmerge.rules.catalogue.ties import ties
from fedmerge.rules.compose import Rule
from fedmerge.rules.spectral import (
    Factored,
    Layer,
    MatrixRule,
    aligned,
    inner_rule,
    merge_coordinates,
    shares,
    singular,
)
from fedmerge.rules.stack import Draw

TIES = ties(density=0.2)


@dataclass(frozen=True)
class CoreSpace(MatrixRule):
    """The rule behind `core_space`."""

    rule: Rule = TIES

    name: ClassVar[str] = "core_space"

    def __post_init__(self) -> None:
        """Check the inner rule."""
        object.__setattr__(self, "rule", inner_rule(self.name, self.rule))

    def merge_cores(self, layer: Layer, weights: Tensor, draw: Draw) -> Factored:
        """Align, merge the small cores, map back."""
        shared = aligned(layer, weights)
        return shared.placed(merge_coordinates(self.rule, shared.cores, weights, draw))


@dataclass(frozen=True)
class Knots(MatrixRule):
    """The rule behind `knots`."""

    rule: Rule = TIES

    name: ClassVar[str] = "knots"

    def __post_init__(self) -> None:
        """Check the inner rule."""
        object.__setattr__(self, "rule", inner_rule(self.name, self.rule))

    def merge_cores(self, layer: Layer, weights: Tensor, draw: Draw) -> Factored:
        """One left basis for all clients; merge what each has on it."""
        roots = (shares(weights) * layer.clients).sqrt()
        beside = torch.cat(list(roots[:, None, None] * layer.cores), dim=1)
        columns = singular(beside, layer.precision).left
        basis = layer.lift_left(columns)
        coordinates = layer.lift_right(columns.T @ layer.cores)
        return Factored(basis, merge_coordinates(self.rule, coordinates, weights, draw))


def core_space(rule: Rule = TIES) -> CoreSpace:
    """Core space merging: align the updates in the bases that they span, merge small cores, map back.

    `tau_i = L M_i R` with orthonormal L and R that all clients share, the `M_i` of size at most the sum of
    the ranks; the result is `L rule(M_1, ..., M_N; w) R`. Nothing is lost on the way, so that a linear rule
    gives what it gives on the updates. L and R are the singular vectors of the stacked factors of all
    clients. As published that depends on how a client factored its update; here each client is canonicalised
    first by the thin SVD of its update (the space `core(like="paper")` has the published form). Weights enter
    the bases, so that a client of weight 2 equals two of weight 1, and the inner rule. Tensors that are no
    LoRA pair are averaged; a plain 2-D tensor is merged as a matrix. A threshold of the inner rule is chosen
    over the layer's core.

    Args:
        rule: what merges the cores: any rule that sees one tensor at a time; in the paper task arithmetic,
            TIES, DARE, TSV and Iso-C among others.

    Returns:
        The rule.

    Raises:
        RuleError: no such rule.

    Example:
        >>> from fedmerge.rules import ties
        >>> print(core_space(rule=ties(density=0.3)))
        core_space(rule=ties(density=0.3))

    Reference:
        Panariello, Marczak, Magistri, Porrello, Twardowski, Bagdanov, Calderara, van de Weijer, "Accurate and
        Efficient Low-Rank Model Merging in Core Space", 2025, arXiv:2509.17786.
    """
    return CoreSpace(rule)


def knots(rule: Rule = TIES) -> Knots:
    """KnOTS: one SVD of all updates side by side, and a merge of what each client has on its left basis.

    `[v_1 tau_1, ..., v_N tau_N] = U S [V_1, ..., V_N]` with `v_i^2 = w_i N / sum w` (1 for equal weights);
    the result is `U rule(U' tau_1, ..., U' tau_N; w)`, where `U' tau_i = S V_i` for equal weights. The bases
    align the clients, so that a rule which compares entries compares like with like. Directions that are only
    rounding are left out, relative to the largest (the authors leave out `S <= 1e-5`). A threshold of the
    inner rule is chosen over one layer's coordinates (the authors: over the whole model). Tensors that are no
    LoRA pair are averaged.

    Args:
        rule: what merges the coordinates: any rule that sees one tensor at a time; TIES and DARE-TIES in the
            paper.

    Returns:
        The rule.

    Raises:
        RuleError: no such rule.

    Example:
        >>> from fedmerge.rules import ties
        >>> print(knots(rule=ties(density=0.3)))
        knots(rule=ties(density=0.3))

    Reference:
        Stoica, Ramesh, Ecsedi, Choshen, Hoffman, "Model Merging with SVD to Tie the Knots", 2024,
        arXiv:2410.19735.
    """
    return Knots(rule)
