"""How many directions an update uses, and how much of it lies in the first ones: from cores, no dense SVD."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass

import torch
from torch import Tensor

from fedmerge.adapters.adapter import Adapter
from fedmerge.adapters.compared import compared
from fedmerge.adapters.cores import layer_of
from fedmerge.rules.spectral import PRECISION


@dataclass(frozen=True)
class Spectrum:
    """The singular values of one update, falling; what is below 1e-10 of the largest is rounding.

    Example:
        >>> even, steep = Spectrum((1.0, 1.0)), Spectrum((3.0, 1.0))
        >>> round(even.effective_rank, 6), round(steep.effective_rank, 2), steep.energy(1)
        (2.0, 1.75, 0.9)
    """

    values: tuple[float, ...]

    @property
    def effective_rank(self) -> float:
        """`exp(-sum p_i log p_i)` with `p_i = s_i / sum s`: 1 for one direction, k for k equal ones.

        Of the singular values themselves, not of their squares; 0 for an update of zeros.

        Reference:
            Roy, Vetterli, The Effective Rank: A Measure of Effective Dimensionality, 2007, EUSIPCO,
            definition 1.
        """
        if not self.values:
            return 0.0
        parts = torch.tensor(self.values, dtype=torch.float64)
        return float(torch.special.entr(parts / parts.sum()).sum().exp())

    def energy(self, count: int) -> float:
        """Share of the energy (the squared Frobenius norm) in the `count` leading singular values.

        Args:
            count: how many, at least 1.
        """
        squares = [value**2 for value in self.values]
        whole = sum(squares)
        return sum(squares[:count]) / whole if whole else 0.0


def spectra(
    deltas: Sequence[Adapter | Mapping[str, Tensor]],
    received: Adapter | Mapping[str, Tensor] | None = None,
) -> dict[str, tuple[Spectrum, ...]]:
    """The singular values of each silo's update of each matrix.

    Of LoRA products by their cores between orthonormal bases, of side (N + 1) r for N silos of rank r; of
    other matrices as they are. Vectors have none and are left out.

    Args:
        deltas: as for `merge`.
        received: what the silos started from.

    Returns:
        By module or tensor, one for each silo.

    Raises:
        AdapterMismatch: deltas that do not belong together, or none.

    Example:
        >>> spectra([{"x": torch.diag(torch.tensor([3.0, 4.0]))}])["x"][0].values
        (4.0, 3.0)
    """
    together = compared(deltas, received)
    found: dict[str, tuple[Spectrum, ...]] = {}
    with torch.no_grad():
        for pair in together.pairs:
            layer = layer_of(together.updates(pair), PRECISION)
            found[pair.module] = tuple(_spectrum(core) for core in layer.cores)
        for name in together.others:
            tensors = together.tensors(name)
            if tensors[0].ndim == 2:
                found[name] = tuple(_spectrum(tensor.to(torch.float64)) for tensor in tensors)
    return found


def _spectrum(matrix: Tensor) -> Spectrum:
    values = torch.linalg.svdvals(matrix)
    return (
        Spectrum(tuple(values[values > PRECISION * values.max()].tolist())) if len(values) else Spectrum(())
    )
