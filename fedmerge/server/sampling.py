"""Which silos a round asks: drawn from (seed, round, name), the same on every machine and Python."""

from __future__ import annotations

import hashlib
from collections.abc import Iterable


def sample(names: Iterable[str], fraction: float, *, seed: int, round: int) -> tuple[str, ...]:
    """Draw `fraction` of the silos, at least one, without replacement.

    Each silo gets a number by hashing (seed, round, name), and those with the smallest are taken: no
    generator has a state that could be used up by something else, and a silo's number does not depend on
    the others.

    Args:
        names: of the silos, in any order.
        fraction: share to draw, in (0, 1].
        seed: of the run.
        round: from 1.

    Returns:
        The names drawn, sorted.

    Example:
        >>> sample(["c", "a", "b"], 0.67, seed=0, round=1) == sample(["a", "b", "c"], 0.67, seed=0, round=1)
        True
        >>> len(sample(["a", "b", "c"], 0.1, seed=0, round=1))
        1
    """
    ordered = sorted(set(names))
    count = min(len(ordered), max(1, int(fraction * len(ordered) + 0.5)))
    return tuple(sorted(sorted(ordered, key=lambda name: _number(name, seed, round))[:count]))


def _number(name: str, seed: int, round: int) -> bytes:
    """What the silo is drawn by: uniform, and its own for each seed and round."""
    return hashlib.sha256(f"fedmerge sample {seed} {round} {name}".encode()).digest()
