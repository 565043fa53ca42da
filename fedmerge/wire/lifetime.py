"""How long a message lives: as long as its round, so that nobody works for a round that is over.

Flower drops a message that has outlived its time-to-live, and a reply to it. The receiver's share of that
time is what is left when it begins: a message that waited for a sleeping node is worth less work.
"""

from __future__ import annotations

import time

from flwr.app import Message, Metadata

from fedmerge.errors import ConfigError


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


def working_seconds(asked: float, metadata: Metadata, now: float | None = None) -> float:
    """How long a silo that begins now may work on a message: what was asked, less what was spent waiting.

    The part of the message's life that the server keeps for the way back is kept.

    Args:
        asked: seconds that the server gives, counted from when the silo begins; 0 is without limit.
        metadata: of the message.
        now: seconds since the epoch; None asks the clock.

    Raises:
        ConfigError: no time is left; the node slept, or a clock is wrong.
    """
    if asked <= 0:
        return asked
    reserve = max(0.0, metadata.ttl - asked)
    left = min(asked, seconds_left(metadata, now) - reserve)
    if left <= 0:
        raise ConfigError(
            f"the message came {-left:.0f} seconds too late to be worked on (it lives {metadata.ttl:g} "
            "seconds): this node was asleep, or its clock and the server's differ"
        )
    return left
