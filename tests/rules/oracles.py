"""Every rule a second time: numpy, float64, a formula a function; the package shares only the masks."""

from __future__ import annotations

import numpy as np
from numpy.typing import NDArray

Array = NDArray[np.float64]


def keep_largest(values: Array, density: float, minimum: int = 1) -> Array:
    count = max(minimum, int(density * values.shape[1]))
    kept = np.zeros_like(values)
    for row, target in zip(values, kept, strict=True):
        best = np.argsort(-np.abs(row), kind="stable")[:count]
        target[best] = row[best]
    return kept


def keep_threshold(values: Array, density: float) -> Array:
    """As the TIES authors do: the k-th smallest magnitude, k = d - int(d * density), and all above."""
    rank = values.shape[1] - int(density * values.shape[1])
    if rank == 0:
        return values
    threshold = np.sort(np.abs(values), axis=1)[:, rank - 1 : rank]
    return np.where(np.abs(values) >= threshold, values, 0.0)


def without(values: Array, client: int) -> Array:
    """One client's values the other way round."""
    return np.stack([-row if place == client else row for place, row in enumerate(values)])


def mean(values: Array, weights: Array) -> Array:
    return (weights[:, None] * values).sum(axis=0) / weights.sum()


def total(values: Array, weights: Array) -> Array:
    return np.count_nonzero(weights) * mean(values, weights)


def agreeing(values: Array, elected: Array) -> NDArray[np.bool_]:
    return (np.sign(values) == elected) & (values != 0)


def ratio(numerator: Array, divisor: Array) -> Array:
    return np.divide(numerator, divisor, out=np.zeros_like(numerator), where=divisor != 0)


def elected_mean(values: Array, weights: Array) -> Array:
    """Sum over those who agree, by the sum of their weights; 0 where the vote is 0."""
    mask = agreeing(values, np.sign((weights[:, None] * values).sum(axis=0)))
    return ratio((weights[:, None] * values * mask).sum(axis=0), (weights[:, None] * mask).sum(axis=0))


def peer_elected(values: Array, weights: Array, *, weighted: bool, divisor: str, zero: str) -> Array:
    votes = (weights[:, None] * values if weighted else values).sum(axis=0)
    elected = np.sign(votes)
    winner = np.sign(elected.sum()) if zero == "majority" else 1.0
    elected = np.where(elected == 0, winner, elected)
    mask = agreeing(values, elected)
    summed = (weights[:, None] * values * mask).sum(axis=0)
    divisors = {
        "one": np.ones_like(summed),
        "count": mask.sum(axis=0).astype(float),
        "weights": (weights[:, None] * mask).sum(axis=0),
    }
    return ratio(summed, divisors[divisor])


def keep_norm(values: Array, mask: NDArray[np.bool_]) -> Array:
    before = np.abs(values).sum(axis=1, keepdims=True)
    after = np.abs(values * mask).sum(axis=1, keepdims=True)
    tiny = np.minimum(before, after) < 1e-7  # which mergekit does not rescale
    return values * mask * np.where(tiny, 1.0, ratio(before, after))


def median(values: Array, weights: Array) -> Array:
    """Of whole-number weights, by writing each client down that many times."""
    return np.median(np.repeat(values, weights.astype(int), axis=0), axis=0)


def trimmed_mean(values: Array, weights: Array, trim: float) -> Array:
    """The integral of the quantile function from trim to 1 - trim, client by client."""
    result = np.zeros(values.shape[1])
    for column in range(values.shape[1]):
        at, mass, summed = 0.0, 0.0, 0.0
        for client in np.argsort(values[:, column], kind="stable"):
            share = weights[client] / weights.sum()
            inside = max(0.0, min(at + share, 1 - trim) - max(at, trim))
            inside = inside if inside > 1e-9 else 0.0
            at, mass, summed = at + share, mass + inside, summed + inside * values[client, column]
        result[column] = summed / mass
    return result
