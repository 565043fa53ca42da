"""What mergekit's further rules and votes by heads compute, in float64."""

from __future__ import annotations

import numpy as np

from . import oracles, oracles_sparse
from .oracles import Array


def drop_by_rank_keep_norm(values: Array, uniform: Array, density: float, epsilon: float) -> Array:
    kept = oracles_sparse.drop_by_rank(values, uniform, density, epsilon) != 0
    return oracles.keep_norm(values, kept)


def elected_by_heads(values: Array, weights: Array, divisor: str | None = None) -> Array:
    """Weighted heads and the weighted mean; with a divisor PEFT's: unweighted heads, + wins a drawn vote."""
    result = np.zeros(values.shape[1])
    for column, entries in enumerate(values.T):
        heads = np.sign(entries) * (weights if divisor is None else weights > 0)
        elected = np.sign(heads.sum())
        elected = 1.0 if elected == 0 and divisor else elected
        counted = (np.sign(entries) == elected) & (entries != 0) & (weights > 0)
        if counted.any():
            total = (weights * entries)[counted].sum()
            result[column] = total / (counted.sum() if divisor else weights[counted].sum())
    return result


def mergekit_sce(values: Array, weights: Array) -> Array:
    """At density 1: clients by the mean of their squares, + wins a drawn vote, no weights."""
    present = values[weights > 0]
    result = np.zeros(values.shape[1])
    if len(present) == 0:
        return result
    squares = (present**2).mean(axis=1)
    shares = np.full(len(present), 1 / len(present)) if squares.sum() < 1e-6 else squares / squares.sum()
    elected = np.where(present.sum(axis=0) >= 0, 1.0, -1.0)
    for column, entries in enumerate(present.T):
        counted = np.where(np.sign(entries) == elected[column], shares, 0.0)
        result[column] = (counted * entries).sum() / max(counted.sum(), 1e-6)
    return result
