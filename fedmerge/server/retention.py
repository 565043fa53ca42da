"""Which closed rounds keep their tensors in a run's folder, where not all of them do."""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any

FEWEST = 2
"""Rounds that can be kept: where the last one is damaged, a run goes back to the one before."""


def leans_on(round: int, state: Mapping[str, Any]) -> set[int]:
    """The rounds whose tensors it takes to go on from a closed round: its own, the last good, and the best.

    Args:
        round: its number.
        state: content of its state.json.
    """
    standing = state.get("standing") or {}
    return {round, *(form["round"] for key in ("good", "best") if (form := standing.get(key)))}


def kept(states: Mapping[int, Mapping[str, Any]], rounds: int) -> set[int]:
    """The rounds that keep their tensors: the first, and all that the last ones lean on.

    Args:
        states: of closed rounds, by number; those before the last ones need not be there.
        rounds: how many of the last may be gone on with.

    Example:
        >>> standing = {"good": {"round": 6}, "best": {"round": 3}}
        >>> sorted(kept({5: {}, 6: {}, 7: {"standing": standing}}, 2))
        [0, 3, 6, 7]
    """
    return {0}.union(*(leans_on(number, states[number]) for number in sorted(states)[-rounds:]))


class Retention:
    """Tells, round by round, whose tensors are needed no longer.

    Args:
        rounds: how many of the last rounds may be gone on with; 0: all, and nothing is ever let go.
    """

    def __init__(self, rounds: int = 0) -> None:
        """Begin with no round closed."""
        self.rounds = rounds
        self._states: dict[int, Mapping[str, Any]] = {}
        self._held: set[int] = set()

    def closed(self, *rounds: tuple[int, Mapping[str, Any]]) -> set[int]:
        """Note that rounds were closed, one after the other or, of an interrupted run, all that were.

        Args:
            rounds: the number of each, and the content of its state.json.

        Returns:
            The rounds whose tensors go.
        """
        if not self.rounds:
            return set()
        for number, state in rounds:
            self._held.add(number)
            self._states[number] = {"standing": state.get("standing")}
        self._states = dict(sorted(self._states.items())[-self.rounds :])
        gone = self._held - kept(self._states, self.rounds)
        self._held -= gone
        return gone
