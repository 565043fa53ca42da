"""What a merge is made with, besides adapters and rule."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass, field

import torch
from torch import Tensor

from fedmerge.rules.stack import Draw


@dataclass(frozen=True, eq=False)
class Context:
    """Weights, names and place of one merge.

    Args:
        weights: raw weights, float64 `(clients,)`, all above 0.
        silos: the clients' names, sorted; random masks depend on them.
        seed: of everything random.
        round: number of the round; random masks depend on it.
        device: where the arithmetic is done.
        kernel: "plain", the composition of a rule's stages; "numba" or "triton", refused where there is none;
            or "auto", the fastest there is. All give the same bits.
        statistics: what each client measured besides, for rules that need it; empty for others.
        step: whether the step is wanted beside the next adapter, where the space has one.
        ran: the kernels that took part, noted as they do.
    """

    weights: Tensor
    silos: tuple[str, ...]
    seed: int = 0
    round: int = 0
    device: torch.device = torch.device("cpu")  # noqa: RUF009 (a device is immutable)
    kernel: str = "auto"
    statistics: tuple[Mapping[str, Mapping[str, Tensor]], ...] = ()
    step: bool = True
    ran: set[str] = field(default_factory=set)

    def draw(self, tensor: str, shape: tuple[int, ...]) -> Draw:
        """What the random numbers of one tensor depend on."""
        return Draw(seed=self.seed, round=self.round, silos=self.silos, tensor=tensor, shape=shape)
