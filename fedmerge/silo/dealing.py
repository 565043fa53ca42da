"""Dealing rows out by shares, the same shares in every split."""

from __future__ import annotations

import hashlib
from collections.abc import Mapping, Sequence

import numpy as np
from numpy.typing import NDArray

from fedmerge.errors import ConfigError

Assignment = dict[str, dict[str, list[int]]]
"""Silo -> split -> numbers of its rows, ascending."""

Shares = NDArray[np.float64]


def generator(seed: int, *purpose: str) -> np.random.Generator:
    """A random generator of its own for each purpose, so that one more draw somewhere changes no other."""
    digest = hashlib.sha256("\0".join(purpose).encode("utf-8", "surrogatepass")).digest()
    return np.random.default_rng([seed, int.from_bytes(digest[:8], "little")])


def deal(
    groups: Mapping[str, Mapping[str, Sequence[int]]],
    shares: Mapping[str, Shares],
    partition: str,
    seed: int,
) -> Assignment:
    """Cut each group of rows by its shares.

    A silo left without train rows takes one from the silo with most.

    Args:
        groups: split -> group (a label, say) -> numbers of its rows.
        shares: group -> the silos' shares of it, `(silos,)`, summing to 1.
        partition: its text, for messages.
        seed: of shuffling and rounding.

    Returns:
        The rows of silo-00, silo-01, ...

    Raises:
        ConfigError: there are fewer train rows than silos.
    """
    count = len(next(iter(shares.values())))
    names = [f"silo-{number:0{max(2, len(str(count - 1)))}}" for number in range(count)]
    silos: Assignment = {name: {split: [] for split in groups} for name in names}
    for split, by_name in groups.items():
        for group, numbers in by_name.items():
            parts = _cut(numbers, shares[group], generator(seed, "rows", split, group))
            for name, part in zip(names, parts, strict=True):
                silos[name][split] += part
    _fill_empty([of["train"] for of in silos.values()], partition)
    return {name: {split: sorted(rows) for split, rows in of.items()} for name, of in silos.items()}


def _cut(numbers: Sequence[int], shares: Shares, draw: np.random.Generator) -> list[list[int]]:
    """Shuffle and cut by shares; each part's size is its share rounded up or down, right on average."""
    shuffled = draw.permutation(np.asarray(numbers, dtype=np.int64))
    # One random offset for all edges (systematic sampling): rounding favours no silo, however few the rows.
    edges = np.floor(np.cumsum(shares) * len(numbers) + draw.random()).astype(np.int64)[:-1]
    return [part.tolist() for part in np.split(shuffled, np.minimum(edges, len(numbers)))]


def _fill_empty(trains: Sequence[list[int]], partition: str) -> None:
    """Move one train row from the silo with most to each silo without any, in place."""
    rows = sum(map(len, trains))
    if rows < len(trains):
        raise ConfigError(f"data.partition = {partition!r}: {len(trains)} silos, but only {rows} train rows")
    for empty in [train for train in trains if not train]:
        empty.append(max(trains, key=len).pop())
