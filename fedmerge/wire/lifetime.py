"""How long a message lives: as long as its round, so that nobody works for a round that is over.

Flower drops a message that has outlived its time-to-live, and a reply to it. What a silo may do with one that
waited for it is said in `fedmerge.silo.lateness`.
"""

from __future__ import annotations

import time

from flwr.app import Message, Metadata


def seconds_left(metadata: Metadata, now: float | None = None) -> float:
    """Seconds until a message has outlived itself; below 0 where it has.

    Args:
        metadata: of the message.
        now: seconds since the epoch; None asks the clock.
    """
    current = time.time() if now is None else now
    return metadata.created_at + metadata.ttl - current


def expired(message: Message) -> bool:
    """Whether a reply to this message would come too late."""
    return seconds_left(message.metadata) <= 0
