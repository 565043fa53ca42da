"""SCE, consensus, MagMax, EMR and RAM a second time: numpy, float64, coordinate by coordinate."""

from __future__ import annotations

import numpy as np

from .oracles import Array, ratio


def sce(values: Array, weights: Array, density: float) -> Array:
    size = values.shape[1]
    if density < 1:
        # Variances times the squared sum of weights: whole numbers stay exact, so that ties are ties.
        spread = weights.sum() * (weights @ values**2) - (weights @ values) ** 2
        if (values != values[0]).any():
            selected = np.argsort(-spread, kind="stable")[: max(1, int(density * size))]
            values = values * np.isin(np.arange(size), selected)
    energies = (values**2).sum(axis=1)
    elected = np.sign(weights @ values)
    shares = (weights * energies)[:, None] * ((np.sign(values) == elected) & (values != 0))
    return ratio((shares * values).sum(axis=0), shares.sum(axis=0))


def consensus(values: Array, weights: Array, clients: int, threshold: float) -> Array:
    result = np.zeros(values.shape[1])
    present = int((weights > 0).sum())
    for place in range(values.shape[1]):
        parts = weights * values[:, place]
        users = sum(abs(part) > threshold * abs(parts.sum() - part) for part in parts)
        if users >= min(clients, present):
            result[place] = present * parts.sum() / weights.sum()
    return result


def magmax(values: Array, weights: Array) -> Array:
    result = np.zeros(values.shape[1])
    for place, column in enumerate(values.T):
        present = column[weights > 0]
        most = np.abs(present).max()
        vote = weights[column == most].sum() - weights[column == -most].sum()
        result[place] = np.sign(vote) * most
    return result


def emr_unified(values: Array, weights: Array) -> Array:
    elected = np.sign(weights @ values)
    agreeing = np.where((np.sign(values) == elected) & (weights[:, None] > 0), np.abs(values), 0.0)
    return elected * agreeing.max(axis=0)


def ram(values: Array, weights: Array, threshold: float, rate: float, limit: float) -> Array:
    changed = (np.abs(values) > threshold) & (weights[:, None] > 0)
    several = changed.sum(axis=0) > 1
    result = np.zeros(values.shape[1])
    for place in range(values.shape[1]):
        who = np.flatnonzero(changed[:, place])
        if len(who) > 1:
            result[place] = np.average(values[who, place], weights=weights[who])
        elif len(who) == 1:
            shared, unique = (changed[who[0]] & several).sum(), (changed[who[0]] & ~several).sum()
            result[place] = values[who[0], place] * (1 + rate * min(limit, shared / unique))
    return result
