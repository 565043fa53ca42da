"""The matrix rules as their papers write them: dense, full SVDs, numpy, equal weights where they have none.

Updates are `(clients, outputs, inputs)`; `merge` stands for the inner rule, from `(clients, coordinates)` to
one row.
"""

from __future__ import annotations

import math
from collections.abc import Callable

import numpy as np

Array = np.ndarray
Inner = Callable[[Array], Array]


def svd(matrix: Array) -> tuple[Array, Array, Array]:
    return np.linalg.svd(matrix, full_matrices=False)


def rank(matrix: Array) -> int:
    return int(np.linalg.matrix_rank(matrix, tol=1e-9))


def coordinatewise(merge: Inner, stacked: Array) -> Array:
    return merge(stacked.reshape(len(stacked), -1)).reshape(stacked.shape[1:])


def core_space(b: list[Array], a: list[Array], merge: Inner) -> Array:
    """2509.17786, on the factors as they are given."""
    u = svd(np.concatenate(b, axis=1))[0][:, : rank(np.concatenate(b, axis=1))]
    vh = svd(np.concatenate(a))[2][: rank(np.concatenate(a))]
    cores = np.stack([u.T @ left @ right @ vh.T for left, right in zip(b, a, strict=True)])
    return u @ coordinatewise(merge, cores) @ vh


def canonical(updates: Array) -> tuple[list[Array], list[Array]]:
    """Factors that only depend on the update: the thin SVD, its values shared out evenly."""
    b, a = [], []
    for update in updates:
        u, s, vh = svd(update)
        count = rank(update)
        b.append(u[:, :count] * np.sqrt(s[:count]))
        a.append(np.sqrt(s[:count])[:, None] * vh[:count])
    return b, a


def knots(updates: Array, merge: Inner) -> Array:
    """2410.19735: S stays with the right factors; S <= 1e-5 is dropped."""
    u, s, vh = svd(np.concatenate(list(updates), axis=1))
    kept = s > 1e-5
    parts = np.split(s[kept, None] * vh[kept], len(updates), axis=1)
    return u[:, kept] @ coordinatewise(merge, np.stack(parts))


def procrustes(matrix: Array) -> Array:
    x, _, y = svd(matrix)
    return x @ y


def tsv_merge(updates: Array) -> Array:
    """2412.00081: the leading 1/N of the triples of each, whitened."""
    count = min(updates.shape[1:]) // len(updates)
    triples = [svd(update) for update in updates]
    u = procrustes(np.concatenate([one[0][:, :count] for one in triples], axis=1))
    v = procrustes(np.concatenate([one[2][:count] for one in triples]))
    return u @ np.diag(np.concatenate([one[1][:count] for one in triples])) @ v


def iso_c(updates: Array) -> Array:
    """2502.04959, Iso-C."""
    u, s, vh = svd(updates.sum(axis=0))
    count = rank(updates.sum(axis=0))
    return s[:count].mean() * u[:, :count] @ vh[:count]


def iso_cts(updates: Array, common: float) -> Array:
    """2502.04959, Iso-CTS, for matrices whose sum has full rank."""
    total = min(updates.shape[1:])
    own = round((total - int(total * common)) / len(updates))
    kept = total - own * len(updates)
    u, s, vh = svd(updates.sum(axis=0))
    left, values, right = [u[:, :kept]], [s[:kept]], [vh[:kept]]
    for update in updates:
        rest_u, rest_s, rest_v = svd(update - u[:, :kept] @ u[:, :kept].T @ update)
        left.append(rest_u[:, :own])
        values.append(rest_s[:own])
        right.append(rest_v[:own])
    middle = np.concatenate(values).mean()
    return middle * procrustes(np.concatenate(left, axis=1)) @ procrustes(np.concatenate(right))


def cart(updates: Array, density: float, scale: float) -> Array:
    """2412.12153: centred at the mean, rank k of each."""
    mean = updates.mean(axis=0)
    count = math.ceil(density * min(updates.shape[1:]))
    total = np.zeros_like(mean)
    for update in updates:
        u, s, vh = svd(update - mean)
        total += (u[:, :count] * s[:count]) @ vh[:count]
    return mean + scale * total
