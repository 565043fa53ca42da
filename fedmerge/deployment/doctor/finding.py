"""What a probe finds: a door, what was asked of it, what it answered, and how to close it."""

from __future__ import annotations

from collections.abc import Iterable
from dataclasses import dataclass

OPEN, CLOSED, UNKNOWN, NOTE = "open", "closed", "unknown", "note"


@dataclass(frozen=True)
class Finding:
    """One door of a federation.

    Args:
        door: what could be used by somebody who should not.
        state: "open" (mend it), "closed", "unknown" (it could not be asked from here), or "note" (good to
            know; nothing that can be closed here).
        asked: what was looked at or sent; no probe changes or takes anything.
        answered: what was there.
        close: how to close it, where it is not closed.
    """

    door: str
    state: str
    asked: str
    answered: str
    close: str = ""


def any_open(findings: Iterable[Finding]) -> bool:
    """Whether at least one door is open.

    Example:
        >>> any_open([Finding("clock", CLOSED, "Date", "0 s apart")])
        False
    """
    return any(finding.state == OPEN for finding in findings)


def judged(door: str, wrong: bool, asked: str, answered: str, close: str) -> Finding:
    """An open door where something is wrong; a closed one, without advice, where it is not."""
    return Finding(door, OPEN if wrong else CLOSED, asked, answered, close if wrong else "")
