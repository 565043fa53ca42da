"""Who is missing, since when and why: a silo that does not answer is said in every round, not once."""

from __future__ import annotations

from collections.abc import Iterable, Mapping
from dataclasses import dataclass, field, replace
from datetime import UTC, datetime

from flwr.app import Message

LATE = "no whole reply in time"
GONE = "its node went away"
NOT_CONNECTED = "its node is not connected"

_EXPIRED = (3, 4)
_NODE_UNAVAILABLE = 5


@dataclass(frozen=True)
class Absence:
    """A silo's absence up to now.

    Args:
        round: the first that it missed.
        rounds: how many it missed, of those that asked it, without an answer between.
        why: the last time.
        time: when the first was noticed, in UTC, "2026-01-31T08:15:00Z".
    """

    round: int
    rounds: int
    why: str
    time: str = ""

    def sentence(self, silo: str) -> str:
        """The absence in words.

        Example:
            >>> Absence(3, 2, GONE, "2026-01-31T08:15:00Z").sentence("b")
            'b (its node went away; since round 3, 2026-01-31T08:15:00Z, 2 rounds in a row)'
        """
        row = f", {self.rounds} rounds in a row" if self.rounds > 1 else ""
        return f"{silo} ({self.why}; since round {self.round}, {self.time}{row})"


@dataclass
class Absences:
    """Keeps count over the rounds of a run."""

    known: dict[str, Absence] = field(default_factory=dict)

    def note(self, round: int, missing: Mapping[str, str], present: Iterable[str]) -> dict[str, Absence]:
        """Take one round down.

        Args:
            round: its number.
            missing: why, by silo that was asked and did not answer.
            present: the silos that answered, with whatever.

        Returns:
            The absence of each missing silo, sorted by name.
        """
        for silo in present:
            self.known.pop(silo, None)
        for silo, why in sorted(missing.items()):
            before = self.known.get(silo)
            first = Absence(round, 0, why, _now()) if before is None else before
            self.known[silo] = replace(first, rounds=first.rounds + 1, why=why)
        return {silo: self.known[silo] for silo in sorted(missing)}

    def recall(self, asked: Iterable[str], missing: Mapping[str, Absence]) -> None:
        """Know what was noted of a round before the run was interrupted."""
        self.known = {silo: each for silo, each in self.known.items() if silo not in set(asked)} | dict(
            missing
        )


def absence_of(reply: Message) -> str:
    """Why a silo is missing, where Flower answers in its stead that nothing came; "" for any other reply.

    A message that has outlived its round is answered with code 3 or 4, one to a node that is gone with 5.
    """
    if not reply.has_error():
        return ""
    if reply.error.code in _EXPIRED:
        return LATE
    return GONE if reply.error.code == _NODE_UNAVAILABLE else ""


def _now() -> str:
    return datetime.now(UTC).strftime("%Y-%m-%dT%H:%M:%SZ")
