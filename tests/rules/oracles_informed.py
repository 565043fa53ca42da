"""Rules with statistics of the silos in plain float64 numpy, written from the papers' formulas."""

from __future__ import annotations

import numpy as np

from .oracles import Array


def fisher_of(uniform: Array) -> Array:
    """A Fisher for the table's cases: multiples of 1/2 from 0, so that products with values are exact."""
    return np.floor(5 * uniform) / 2


def fisher_mean(
    values: Array, weights: Array, fishers: Array, floor: float, normalize: bool = False
) -> Array:
    """Coordinate by coordinate: `sum F w tau / sum F w`."""
    clients, coordinates = values.shape
    merged = np.zeros(coordinates)
    for column in range(coordinates):
        above = below = 0.0
        for client in range(clients):
            row = [max(value, floor) for value in fishers[client]]
            length = sum(value**2 for value in row) ** 0.5 if normalize else 1.0
            precision = weights[client] * (row[column] / length if length else 0.0)
            above += precision * values[client, column]
            below += precision
        merged[column] = above / below if below else 0.0
    return merged


def least_squares(inputs: list[Array], outputs: list[Array]) -> Array:
    """The B `(outputs, rank)` that minimises `sum |B x - y|^2` over all clients' columns x and y."""
    x, y = np.concatenate(inputs, axis=1), np.concatenate(outputs, axis=1)
    solved, *_ = np.linalg.lstsq(x.T, y.T, rcond=None)
    return solved.T
