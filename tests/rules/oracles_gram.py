"""Geometric and Byzantine rules a second time: numpy, float64, on the vectors themselves, no Gram matrix."""

from __future__ import annotations

import numpy as np

from . import oracles
from .oracles import Array


def _present(values: Array, weights: Array) -> tuple[Array, Array]:
    return values[weights > 0], weights[weights > 0]


def _cosine(one: Array, two: Array) -> float:
    lengths = np.linalg.norm(one) * np.linalg.norm(two)
    return float(np.clip(one @ two / lengths, -1, 1)) if lengths else 0.0


def slerp(values: Array, weights: Array, t: float | None, linear: float) -> Array:
    values, weights = _present(values, weights)
    if not len(values):
        return np.zeros(values.shape[1])
    if len(values) == 1:
        return values[0]
    t = weights[1] / weights.sum() if t is None else t
    cosine = _cosine(*values)
    if abs(cosine) > linear:
        return (1 - t) * values[0] + t * values[1]
    angle = np.arccos(cosine)
    return (np.sin((1 - t) * angle) * values[0] + np.sin(t * angle) * values[1]) / np.sin(angle)


def on_sphere(values: Array, weights: Array, steps: int) -> Array:
    """Mean direction times mean length; with steps, the Riemannian mean by logarithms and exponentials."""
    values, weights = _present(values, weights)
    if not len(values):
        return np.zeros(values.shape[1])
    shares = weights / weights.sum()
    lengths = np.linalg.norm(values, axis=1)
    moved = lengths > 0
    if not moved.any():
        return np.zeros(values.shape[1])
    units, parts = values[moved] / lengths[moved, None], shares[moved] / shares[moved].sum()
    place = parts @ units
    if np.linalg.norm(place) < 1e-7:
        return shares @ values
    place = place / np.linalg.norm(place)
    for _ in range(steps):
        step = sum(part * _logarithm(place, unit) for part, unit in zip(parts, units, strict=True))
        angle = np.linalg.norm(step)
        if angle < 1e-13:
            break
        place = np.cos(angle) * place + np.sin(angle) * step / angle
        place = place / np.linalg.norm(place)
    return (shares @ lengths) * place


def _logarithm(place: Array, unit: Array) -> Array:
    """The tangent vector at `place` that points to `unit`, as long as the arc between them."""
    across = unit - (place @ unit) * place
    sine, cosine = np.linalg.norm(across), place @ unit
    if sine < 1e-6:
        return across if cosine > 0 else np.zeros_like(place)
    return np.arctan2(sine, cosine) * across / sine


def model_stock(values: Array, weights: Array) -> Array:
    values, weights = _present(values, weights)
    count = len(values)
    if count < 2:
        return values.sum(axis=0)
    cosines = [_cosine(values[i], values[j]) for i in range(count) for j in range(i)]
    cosine = sum(cosines) / len(cosines)
    ratio = count * cosine / ((count - 1) * cosine + 1) if cosine > 0 else 0.0
    return ratio * oracles.mean(values, weights)


def krum_order(values: Array, attackers: int) -> list[int]:
    """Clients by their score."""
    scores = []
    for i, own in enumerate(values):
        squares = sorted(float(((own - other) ** 2).sum()) for j, other in enumerate(values) if j != i)
        scores.append(sum(squares[: len(values) - attackers - 2]))
    return list(np.argsort(scores, kind="stable"))


def multi_krum(values: Array, weights: Array, attackers: int, keep: int | None) -> Array:
    values, weights = _present(values, weights)
    chosen = krum_order(values, attackers)[: keep or len(values) - attackers - 2]
    return np.average(values[chosen], axis=0, weights=weights[chosen])


def geometric_median(values: Array, weights: Array, iterations: int, smoothing: float) -> Array:
    values, weights = _present(values, weights)
    if not len(values):
        return np.zeros(values.shape[1])
    least = smoothing * norm_median(values, weights)
    point = oracles.mean(values, weights)
    for _ in range(iterations):
        distances = np.linalg.norm(values - point, axis=1)
        closeness = weights / np.maximum(distances, max(least, 1e-300))
        point = (closeness / closeness.sum()) @ values
    return point


def norm_median(values: Array, weights: Array) -> float:
    return float(oracles.median(np.linalg.norm(values, axis=1)[:, None], weights)[0])


def clip_norm(values: Array, weights: Array, limit: float | None) -> Array:
    limit = norm_median(values, weights) if limit is None else limit
    lengths = np.linalg.norm(values, axis=1)
    factors = [min(1.0, limit / length) if length else 1.0 for length in lengths]
    return np.array(factors)[:, None] * values
