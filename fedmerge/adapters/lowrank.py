"""Best rank-k factorisations of matrices that are given as products, or dense. All in float64.

A product `left @ core @ right` of a tall, a small and a wide matrix is never formed: with `left = Q T` and
`right' = P S` (orthonormal Q and P), its singular values are those of the small `T core S'`.
"""

from __future__ import annotations

from dataclasses import dataclass

import torch
from torch import Tensor

WORST_CONDITION = 1e6
"""Of the Gram matrix. Below it Cholesky leaves Q orthonormal to 1e-10; above it QR, some 8 times slower."""

EXACT_SIDE = 512
"""A dense matrix with a side up to this gets an exact SVD; 512 x 512 takes 0.1 s on one core."""

SMALLEST_SQUARE = 1e-280
"""A column whose square is below this, or above its inverse, is scaled before its products are taken."""

OVERSAMPLING = 16
LARGEST_SWEEPS = 30
SETTLED = 1e-7


@dataclass(frozen=True, eq=False)
class LowRank:
    """The best rank-k approximation of a matrix: `left @ diag(values) @ right`.

    Args:
        left: orthonormal columns, `(outputs, k)`; of each, the entry of largest magnitude is positive.
        values: singular values, falling, all above 0, `(k,)`.
        right: orthonormal rows, `(k, inputs)`.
        energy: squared Frobenius norm of the whole matrix.
        discarded: the part of the energy that the approximation leaves out.
    """

    left: Tensor
    values: Tensor
    right: Tensor
    energy: float
    discarded: float

    @property
    def effective_rank(self) -> float:
        """Over how many directions the approximation spreads: exp of the entropy of its singular values.

        Between 1 and their number, which it is where all are equal; 0 for a zero matrix.

        Reference:
            Roy, Vetterli, The Effective Rank, 2007, EUSIPCO.
        """
        if not len(self.values):
            return 0.0
        parts = self.values / self.values.sum()
        return float(torch.special.entr(parts).sum().exp())


def truncate_product(left: Tensor, core: Tensor, right: Tensor, rank: int, precision: float) -> LowRank:
    """Best rank-k approximation of `left @ core @ right` without forming it.

    Args:
        left: float64 `(outputs, p)`.
        core: float64 `(p, q)`.
        right: float64 `(q, inputs)`.
        rank: the k, at least 1.
        precision: singular values below this share of the largest are rounding, and left out.

    Returns:
        The approximation, exact up to float64 rounding.

    Raises:
        OverflowError: the product is beyond float64.

    Example:
        >>> eye = torch.eye(4, dtype=torch.float64)
        >>> core = torch.diag(torch.tensor([1.0, 3.0, 0.0, 2.0], dtype=torch.float64))
        >>> low = truncate_product(eye, core, eye, 2, 1e-12)
        >>> low.values.tolist(), round(low.discarded / low.energy, 3)
        ([3.0, 2.0], 0.071)
    """
    return truncate_between(orthonormal(left), core, orthonormal(right.T), rank, precision)


@dataclass(frozen=True, eq=False)
class Basis:
    """A matrix as orthonormal columns times `triangle`, the columns not formed before they are asked for.

    Args:
        columns: `(n, q)`; times the inverse of `upper` they are orthonormal, or as they are if None.
        upper: upper triangular `(q, q)`, or None.
        triangle: `(q, p)`.
    """

    columns: Tensor
    upper: Tensor | None
    triangle: Tensor

    def lift(self, coordinates: Tensor) -> Tensor:
        """From coordinates in the basis, `(q, k)`, to vectors `(n, k)`."""
        if self.upper is not None:
            coordinates = torch.linalg.solve_triangular(self.upper, coordinates, upper=True)
        # Not columns @ coordinates: few rows times a wide matrix took 0.5 ms, that 0.7 to 4.7.
        return (coordinates.T @ self.columns.T).T

    def formed(self) -> Tensor:
        """The orthonormal columns themselves, `(n, q)`."""
        if self.upper is None:
            return self.columns
        return self.lift(torch.eye(len(self.upper), dtype=self.upper.dtype, device=self.upper.device))


def truncate_between(tall: Basis, core: Tensor, wide: Basis, rank: int, precision: float) -> LowRank:
    """`truncate_product` where the bases are known: `tall` of the left columns, `wide` of the right rows.

    Raises:
        OverflowError: the product is beyond float64.
    """
    u, values, vh = _svd(tall.triangle @ core @ wide.triangle.T)
    return _kept((tall.lift(u[:, :rank]), values, wide.lift(vh[:rank].T).T), rank, precision)


def orthonormal(matrix: Tensor) -> Basis:
    """An orthonormal basis of the columns, and the columns in it.

    By the Cholesky factor of the Gram matrix of the scaled columns (one pass over the matrix), by QR where
    that would lose digits. Columns of zeros take no part.

    Args:
        matrix: float64 `(n, p)`.

    Reference:
        Yamamoto et al., Roundoff error analysis of the CholeskyQR2 algorithm, 2015, ETNA 44.
    """
    gram = matrix.T @ matrix
    squares = gram.diagonal()
    alive = squares != 0
    sound = (squares[alive] > SMALLEST_SQUARE) & (squares[alive] < 1 / SMALLEST_SQUARE)
    whole = bool(alive.all())
    if not bool(sound.all()) or (not whole and bool(matrix[:, ~alive].any())):
        return _by_qr(matrix)
    columns = matrix if whole else matrix[:, alive]
    norms = squares[alive].sqrt()
    scaled = gram[alive][:, alive] / norms / norms.unsqueeze(1)
    upper, failed = torch.linalg.cholesky_ex(scaled, upper=True)
    if int(failed) or not _well_conditioned(scaled, upper):
        return _by_qr(matrix)
    triangle = gram.new_zeros(len(upper), len(gram))
    triangle[:, alive] = upper * norms
    return Basis(columns, upper * norms, triangle)


def _by_qr(matrix: Tensor) -> Basis:
    """The basis where the Gram matrix has lost digits; columns of zeros take no part."""
    sizes = matrix.abs().amax(dim=0)  # a norm would underflow before its column does
    alive = sizes > 0
    columns, upper = torch.linalg.qr(matrix[:, alive] / sizes[alive])
    triangle = matrix.new_zeros(upper.shape[0], matrix.shape[1])
    triangle[:, alive] = upper * sizes[alive]
    return Basis(columns, None, triangle)


def _well_conditioned(gram: Tensor, upper: Tensor) -> bool:
    """Whether the condition number in the 1-norm, exact from the inverse, is below the limit."""
    if gram.numel() == 0:
        return True
    inverse = torch.cholesky_inverse(upper, upper=True)
    condition = torch.linalg.matrix_norm(gram, 1) * torch.linalg.matrix_norm(inverse, 1)
    return float(condition) < WORST_CONDITION


def truncate_dense(matrix: Tensor, rank: int, precision: float, hint: Tensor | None = None) -> LowRank:
    """Best rank-k approximation of a dense matrix.

    Exact where the smaller side is at most 512. Else by subspace iteration with k + 16 columns, until a sweep
    gains less than 1e-7 of the energy (or 30 sweeps), starting from the hint and 16 seeded random columns.
    Measured on ties, dare and median of 8 random silos: 2 to 4 sweeps, and a discarded energy at most 1e-6 of
    itself above the smallest possible.

    Args:
        matrix: float64 `(outputs, inputs)`.
        rank: the k, at least 1.
        precision: singular values below this share of the largest are rounding, and left out.
        hint: rows that nearly span the leading right singular vectors, `(any, inputs)`: the clients' own.

    Raises:
        OverflowError: the matrix is not finite.

    Reference:
        Halko, Martinsson, Tropp, Finding Structure with Randomness, 2011, arXiv 0909.4061, algorithm 4.4.
    """
    if min(matrix.shape) <= max(EXACT_SIDE, 2 * (rank + OVERSAMPLING)):
        return _kept(_svd(matrix), rank, precision)
    energy, caught = float(torch.linalg.vector_norm(matrix)) ** 2, 0.0
    basis = torch.linalg.qr(matrix @ _start(matrix, rank, hint))[0]
    for _ in range(LARGEST_SWEEPS):
        u, values, vh = _svd(basis.T @ matrix)
        before, caught = caught, float(values[:rank].square().sum())
        if caught - before <= SETTLED * energy:
            break
        basis = torch.linalg.qr(matrix @ vh[: rank + OVERSAMPLING].T)[0]
    return _kept((basis @ u, values, vh), rank, precision, energy)


def _start(matrix: Tensor, rank: int, hint: Tensor | None) -> Tensor:
    """Columns to begin with, `(inputs, any)`: random ones catch what the hint lacks."""
    generator = torch.Generator().manual_seed(0)
    count = OVERSAMPLING if hint is not None else rank + OVERSAMPLING
    columns = torch.randn(matrix.shape[1], count, generator=generator, dtype=torch.float64).to(matrix.device)
    if hint is None:
        return columns
    sizes = torch.linalg.vector_norm(hint, dim=1, keepdim=True)
    return torch.cat([(hint / torch.where(sizes > 0, sizes, 1.0)).T, columns / len(columns) ** 0.5], dim=1)


def _svd(matrix: Tensor) -> tuple[Tensor, Tensor, Tensor]:
    if not bool(matrix.isfinite().all()):
        raise OverflowError
    left: Tensor
    left, values, right = torch.linalg.svd(matrix, full_matrices=False)
    return left, values, right


def _kept(
    svd: tuple[Tensor, Tensor, Tensor], rank: int, precision: float, energy: float | None = None
) -> LowRank:
    """Leave out what is only rounding, fix the signs, and account for the energy."""
    left, values, right = svd
    whole = float(values.square().sum()) if energy is None else energy
    largest = values[0] if values.numel() else values.new_zeros(())
    count = min(rank, int((values > precision * largest).sum()))
    kept = values[:count]
    # Where all values are known their tail is summed by itself: a difference would leave rounding.
    tail = values[count:].square().sum() if energy is None else max(whole - float(kept.square().sum()), 0.0)
    left, right = left[:, :count], right[:count]
    top = left.abs().argmax(dim=0, keepdim=True) if count else left.new_zeros(1, 0, dtype=torch.int64)
    signs = torch.where(left.gather(0, top) < 0, -1.0, 1.0).to(left.dtype)
    return LowRank(left * signs, kept, right * signs.T, whole, float(tail))
