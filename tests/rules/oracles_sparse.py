"""DELLA and Model Breadcrumbs a second time: numpy, float64, entry by entry."""

from __future__ import annotations

import numpy as np

from .oracles import Array


def drop_by_rank(values: Array, uniform: Array, density: float, epsilon: float, rows: int = 1) -> Array:
    """Each row of each client: rank the magnitudes, keep by the rank's probability, divide by it."""
    result = np.zeros_like(values)
    length = values.shape[1] // rows
    for client in range(len(values)):
        for row in range(rows):
            places = range(row * length, (row + 1) * length)
            ascending = sorted(places, key=lambda place: (abs(values[client, place]), place))
            for rank, place in enumerate(ascending):
                share = rank / (length - 1) if length > 1 else 0.5
                probability = share * (2 * epsilon) + (density - epsilon)
                if uniform[client, place] < probability:
                    result[client, place] = values[client, place] / probability
    return result


def keep_middle(values: Array, density: float, gamma: float) -> Array:
    size = values.shape[1]
    result = np.zeros_like(values)
    for row, target in zip(values, result, strict=True):
        descending = np.argsort(-np.abs(row), kind="stable")
        band = descending[int(gamma * size) :][: max(1, int(density * size))]
        target[band] = row[band]
    return result


def agreed_total(values: Array, weights: Array) -> Array:
    """Number of those who agree with the elected sign, times their weighted mean."""
    result = np.zeros(values.shape[1])
    for place, column in enumerate(values.T):
        elected = np.sign(weights @ column)
        agree = (np.sign(column) == elected) & (column != 0) & (weights > 0)
        if agree.any():
            result[place] = agree.sum() * np.average(column[agree], weights=weights[agree])
    return result
