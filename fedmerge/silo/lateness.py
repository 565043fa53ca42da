"""How long a deployed silo may still work on a message: its time began when the server made the message."""

from __future__ import annotations

import time
from dataclasses import dataclass, field

from fedmerge.errors import PolicyError

LATE = "late"
"""The code of a message that is answered without work: nobody waits for it any more."""

SHARE = 0.9
"""Share of a message's lifetime that a silo may work for; the rest is for the way back."""


@dataclass(frozen=True)
class Lifetime:
    """The time of one message.

    Args:
        created: when the server made it, in seconds since 1970 by the server's clock.
        seconds: how long it lives.
        arrived: when it came, by the clock here. A server's clock that is ahead gives no time away.
        since: `time.monotonic()` of that moment.
    """

    created: float
    seconds: float
    arrived: float
    since: float = field(default_factory=time.monotonic)

    @property
    def age(self) -> float:
        """Seconds since it was made, at least those since it came."""
        return max(0.0, self.arrived - self.created) + time.monotonic() - self.since

    def left(self, deadline_seconds: float) -> float:
        """Seconds that are left for work.

        Args:
            deadline_seconds: of the instruction, counted from when the message was made; 0 is without.

        Raises:
            PolicyError: none are, with the code "late".
        """
        limit = min(deadline_seconds, self.seconds) if deadline_seconds else SHARE * self.seconds
        left = limit - self.age
        if left <= 0:
            raise PolicyError(
                f"the message is {self.age:.0f} s old and had {limit:.0f} s: it waited here behind others, "
                "or the clocks of server and site differ",
                code=LATE,
            )
        return left
