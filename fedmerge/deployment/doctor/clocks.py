"""Whether the clock of who answers agrees with ours."""

from __future__ import annotations

from datetime import UTC, datetime
from email.utils import parsedate_to_datetime

from fedmerge.deployment.doctor.asking import HungUp, Place, Unreachable, ask
from fedmerge.deployment.doctor.finding import UNKNOWN, Finding, judged

SKEW_SECONDS = 60.0
"""Flower refuses a node whose clock is 5 s ahead or 305 s behind, and messages have a lifetime: be below."""

AHEAD_SECONDS = 4.0


def skew(place: Place, path: str = "/health") -> Finding:
    """Compare the Date header of an answer with this machine's clock; it has whole seconds."""
    door, asked = "clock", f"the Date header of GET {place}{path}"
    before = datetime.now(UTC)
    try:
        answer = ask(place, path)
    except (HungUp, Unreachable) as error:
        return Finding(door, UNKNOWN, asked, str(error))
    return compared(answer.headers.get("date", ""), before, datetime.now(UTC), asked)


def compared(date: str, before: datetime, after: datetime, asked: str) -> Finding:
    """Judge a Date header that was made between two moments of our clock."""
    try:
        theirs = parsedate_to_datetime(date)
    except ValueError:
        return Finding("clock", UNKNOWN, asked, f"no date: {date[:60]!r}")
    if theirs.tzinfo is None:
        theirs = theirs.replace(tzinfo=UTC)
    ours_ahead = (before - theirs).total_seconds() - 1.0  # Date has whole seconds, rounded down
    theirs_ahead = (theirs - after).total_seconds()
    apart = max(ours_ahead, theirs_ahead, 0.0)
    wrong = ours_ahead > AHEAD_SECONDS or theirs_ahead > SKEW_SECONDS
    told = f"{apart:.0f} s apart" + (", ours is ahead" if ours_ahead > 0 else "")
    return judged(
        "clock", wrong, asked, told, "let both machines keep time by NTP (timedatectl set-ntp true)"
    )
