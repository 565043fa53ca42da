"""One reply, pulled without belief: whatever it is made of, what comes back is a reply to this message.

Over the network a reply is put together in this process, out of objects that its sender made. Where that
fails, or the result is too large or says that it answers another message, an error of our own stands for it,
so that it costs its sender the round and nobody else anything.
"""

from __future__ import annotations

import logging
from collections.abc import Iterable
from dataclasses import dataclass

from flwr.app import Error, Message
from flwr.serverapp import Grid
from google.protobuf.message import DecodeError

from fedmerge.errors import WireError
from fedmerge.server.inflation import Oversized, limited, most_arrays, most_bytes
from fedmerge.server.reading import FOREIGN, OVERSIZED, UNREADABLE
from fedmerge.wire.packing import unpack

logger = logging.getLogger(__name__)

DAMAGE = (
    ArithmeticError, AssertionError, AttributeError, DecodeError, LookupError, MemoryError, RecursionError,
    TypeError, ValueError,
)  # fmt: skip
"""What putting damaged objects together ends in; a network that fails raises other errors, which go on."""


@dataclass(frozen=True)
class Awaited:
    """A message that is out.

    Args:
        message_id: of the message.
        most_bytes: that an answer to it can have.
        most_arrays: that it can have.
        errors: by code, what stands for an answer that can't be taken.
    """

    message_id: str
    most_bytes: int
    most_arrays: int
    errors: dict[int, Message]

    @classmethod
    def of(cls, message: Message, message_id: str) -> Awaited:
        """What must be known of a message once it is pushed; not the message, which holds the broadcast."""
        errors = {code: Message(Error(code), reply_to=message) for code in (UNREADABLE, OVERSIZED, FOREIGN)}
        return cls(message_id, most_bytes(message), most_arrays(message), errors)


def pull(grid: Grid, awaited: Awaited) -> Iterable[Message]:
    """The reply to a message, if it is there, or the error that stands for it."""
    try:
        with limited(grid, awaited.most_bytes):
            replies = list(grid.pull_messages([awaited.message_id]))
        for reply in replies:
            if reply.has_content():
                unpack(reply.content, awaited.most_arrays)
    except Oversized as problem:
        return [_instead(awaited, OVERSIZED, str(problem))]
    except (WireError, *DAMAGE) as problem:
        return [_instead(awaited, UNREADABLE, type(problem).__name__)]
    for place, reply in enumerate(replies):
        said = reply.metadata.reply_to_message_id
        if said != awaited.message_id:
            replies[place] = _instead(awaited, FOREIGN, "another message")
    return replies


def _instead(awaited: Awaited, code: int, why: str) -> Message:
    logger.warning("the reply to message %s can't be taken: %s", awaited.message_id[:16], why)
    return awaited.errors[code]
