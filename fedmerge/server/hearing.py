"""Hearing a round's replies: who is still to be heard, who is lost, and when there is nothing to wait for."""

from __future__ import annotations

import logging
from collections.abc import Callable, Iterable, Sequence
from dataclasses import dataclass, field

from flwr.app import Message, Metadata

from fedmerge.server.absence import LATE, absence_of
from fedmerge.server.asking import Asked
from fedmerge.server.guard import Admitted, Guard, Refusal
from fedmerge.server.observer import Observer

logger = logging.getLogger(__name__)

MOST_TRIES = 3
"""Times that a silo whose node goes away is asked in one round, where the quorum needs it."""

Sent = tuple[tuple[Metadata, str], ...]
"""The metadata of each message, and the silo that it went to; ids are known once messages are pushed."""

Again = Callable[[Sequence[str]], tuple[Sent, Iterable[Message]]]
"""Asks silos once more when their nodes are back; nobody where the round's time is over."""


@dataclass
class Hearing:
    """The replies of one round as they come in.

    Args:
        guard: checks them.
        observer: is told of each.
        asked: whom the round asks.
        waiting: the silo by the id of the message that it has not answered.
        lost: why, by silo from which no reply to its last message can come.
    """

    guard: Guard
    observer: Observer
    asked: Asked
    waiting: dict[str, str] = field(default_factory=dict)
    lost: dict[str, str] = field(default_factory=dict)

    def hear(self, sent: Sent, replies: Iterable[Message]) -> None:
        """Take replies until there are no more, or the quorum is out of reach whatever still comes."""
        self.waiting |= {metadata.message_id: silo for metadata, silo in sent}
        for silo in self.waiting.values():
            self.lost.pop(silo, None)
        for reply in replies:
            self._take(reply)
            if self.hopeless:
                logger.warning("round %d: its quorum is out of reach, it ends now", self.guard.round)
                return
            del reply

    def hear_again(self, again: Again, named: bool) -> None:
        """Ask silos whose nodes went away once more, for as long as the quorum can't be had without them."""
        for _ in range(1, MOST_TRIES):
            wanted = sorted(self.lost)
            if self.hopeless or not wanted or self.reached:
                return
            sent, replies = again(wanted)
            if not sent:
                return
            self.guard.asked = {**self.guard.asked, **addressees(sent, named=named)}
            self.hear(sent, replies)

    @property
    def reached(self) -> bool:
        """Whether the quorum is there."""
        return len(self.guard.admitted) >= self.asked.need

    @property
    def hopeless(self) -> bool:
        """Whether so many replies were refused that the quorum can't be reached any more."""
        return len(self.guard.admitted) + len(self.waiting) + len(self.lost) < self.asked.need

    def missing(self) -> dict[str, str]:
        """Why, by silo that was asked and did not answer; without those that were not waited for."""
        late = {} if self.hopeless else dict.fromkeys(self.waiting.values(), LATE)
        away = {silo: why for silo, why in self.asked.absent.items() if silo not in self.asked.nodes}
        return dict(sorted({**away, **late, **self.lost}.items()))

    def dismissed(self) -> list[str]:
        """The silos that were not waited for, as their replies could not save the round."""
        return sorted(self.waiting.values()) if self.hopeless else []

    def _take(self, reply: Message) -> None:
        silo = self.waiting.pop(reply.metadata.reply_to_message_id, "")
        why = absence_of(reply) if silo else ""
        if why:
            self.lost[silo] = why
            logger.warning("round %d: %s is missing: %s", self.guard.round, silo, why)
            return
        outcome = self.guard.admit(reply)
        if isinstance(outcome, Admitted):
            self.lost.pop(outcome.silo, None)
            self.observer.reply(self.guard.round, outcome.silo, "admitted", outcome.metrics)
        else:
            _tell(self.observer, outcome)


def addressees(sent: Sent, *, named: bool) -> dict[str, str]:
    """The silo by the id of its message; "" where replies have to say their names."""
    return {metadata.message_id: silo if named else "" for metadata, silo in sent}


def _tell(observer: Observer, refusal: Refusal) -> None:
    logger.warning("round %d: %s is refused: %s", refusal.round, refusal.silo, refusal.reason)
    observer.reply(refusal.round, refusal.silo, refusal.reason, {})
