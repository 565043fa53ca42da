"""Admits or refuses each reply of a round, by name and reason.

A reply was made at another institution. Nothing in it is believed: who sent it is known from the message
that it answers, its tensors must be those of the broadcast, its numbers finite, its weight a number of
rows. A refused reply leaves no trace in the result: it is bit-identical to that of a run without the silo.
"""

from __future__ import annotations

import logging
from collections.abc import Mapping
from dataclasses import dataclass, field, replace
from typing import Literal

from flwr.app import ArrayRecord, Message, RecordDict
from torch import Tensor

from fedmerge.adapters import Adapter
from fedmerge.adapters.statistics import Statistics, check_sign, shapes_of
from fedmerge.errors import AdapterMismatch, WireError
from fedmerge.server.limits import check_size
from fedmerge.server.reading import (
    arrays_of,
    check_examples,
    check_finite,
    error_of,
    finite_norm,
    metrics_of,
    numbers_of,
    refusal_code,
    statistic_of,
    subtract,
)
from fedmerge.server.refusing import Refused, refusing
from fedmerge.server.signed_grid import check_proven
from fedmerge.wire.protocol import EXAMPLES, Sender, read_sender
from fedmerge.wire.records import count_bytes, from_record
from fedmerge.wire.schema import Entry, Schema, shown

logger = logging.getLogger(__name__)

Replies = Literal["delta", "weights"]


@dataclass(frozen=True)
class Admitted:
    """A reply that takes part in the round.

    Args:
        silo: its name.
        delta: trained minus received, in the broadcast's dtypes.
        examples: training rows, above 0.
        metrics: what the silo measured.
        norm: length of the delta over all its tensors; 0 for a silo that learned nothing.
        device: "cpu" or "cuda"; "" where unknown.
        statistics: what the rule needs besides, by its name, and within by names of tensors or modules.
    """

    silo: str
    delta: Adapter
    examples: float
    metrics: Mapping[str, float]
    norm: float
    device: str = ""
    statistics: Statistics = field(default_factory=dict)


@dataclass(frozen=True)
class Refusal:
    """A reply that was dropped, and why; `code` is the kind of reason, "reply/values"."""

    round: int
    silo: str
    reason: str
    code: str = "reply/broken"


@dataclass
class Guard:
    """Checks the replies of one round. `admit` each as it comes, then read `admitted`.

    Args:
        round: from 1.
        received: the broadcast that the silos started from.
        asked: the silo by the id of the message that went to it; "" where the reply has to say its name.
        encoding: how deltas travel.
        replies: whether silos send deltas or trained weights.
        fingerprint: of the base; "" takes any.
        reveal: whether Flower's own error text may be repeated (it can quote private things).
        needs: the statistics that a reply must carry.
        refused: the replies dropped so far.
        answered: ids of the messages to which anything came so far.
        bytes_up: of the replies' content so far.
    """

    round: int
    received: Adapter
    asked: Mapping[str, str]
    encoding: str = "exact"
    replies: Replies = "delta"
    fingerprint: str = ""
    reveal: bool = False
    needs: frozenset[str] = frozenset()
    refused: list[Refusal] = field(default_factory=list)
    answered: set[str] = field(default_factory=set)
    bytes_up: int = 0
    _admitted: dict[str, Admitted] = field(default_factory=dict)
    _claimed: set[str] = field(default_factory=set)
    _settled: set[str] = field(default_factory=set)

    def __post_init__(self) -> None:
        """Fix what a reply's tensors must be; trained weights travel exactly."""
        encoding = self.encoding if self.replies == "delta" else "exact"
        self.schema = Schema.of(self.received.tensors, encoding)
        shapes = {name: shapes_of(name, self.received.tensors) for name in sorted(self.needs)}
        self.measured = {
            name: Schema({key: Entry(shape, "float32") for key, shape in entries.items()})
            for name, entries in shapes.items()
        }

    @property
    def admitted(self) -> list[Admitted]:
        """The admitted replies, sorted by silo name: the order of arrival has no part in the result."""
        return [self._admitted[silo] for silo in sorted(self._admitted)]

    def admit(self, reply: Message) -> Admitted | Refusal:
        """Check one reply, decode it, and empty it.

        Returns:
            The reply decoded, or the reason why it was dropped; both are also kept here.
        """
        silo = self._name(reply)
        try:
            outcome: Admitted | Refusal = self._check(reply, silo)
        except Refused as problem:
            outcome = Refusal(self.round, silo, str(problem), problem.code)
        except Exception as problem:  # whatever a reply holds, it ends neither the round nor the run
            logger.exception("round %d: the reply of %s broke the guard", self.round, silo)
            outcome = Refusal(self.round, silo, f"it can't be read ({type(problem).__name__})")
        if reply.has_content():
            reply.content = RecordDict()  # whoever holds the reply holds its bytes no longer
        if isinstance(outcome, Refusal):
            self.refused.append(outcome)
        else:
            self._admitted[silo] = outcome
        return outcome

    def drop(self, silo: str, reason: str, code: str) -> None:
        """Refuse a silo after all."""
        del self._admitted[silo]
        self.refused.append(Refusal(self.round, silo, reason, code))

    def cap(self, silo: str, most_examples: int) -> None:
        """Have a silo count as no more than so many rows."""
        was = self._admitted[silo]
        self._admitted[silo] = replace(was, examples=min(was.examples, float(most_examples)))

    def shorten(self, silo: str, factor: float) -> None:
        """Scale a silo's delta by `factor`."""
        was = self._admitted[silo]
        delta = replace(
            was.delta, tensors={name: value * factor for name, value in was.delta.tensors.items()}
        )
        self._admitted[silo] = replace(was, delta=delta, norm=was.norm * factor)

    def _name(self, reply: Message) -> str:
        """The silo that a reply is from: the one that was asked, else the one it says, else the node."""
        asked = self.asked.get(reply.metadata.reply_to_message_id, "")
        if asked:
            return asked
        try:
            said = read_sender(reply.content).silo if reply.has_content() else ""
        except WireError:
            said = ""
        return said or f"node-{reply.metadata.src_node_id}"

    def _check(self, reply: Message, silo: str) -> Admitted:
        """Every check, the cheap ones first.

        Raises:
            Refused: with the reason.
        """
        content = self._content(reply)
        with refusing("reply/records"):
            sender = read_sender(content)
            self._check_sender(sender, self.asked[reply.metadata.reply_to_message_id])
            self._claim(silo)
            check_size(content, (self.schema, *self.measured.values()))
            metrics = metrics_of(content)
            # A copy is emptied while it is decoded: in one process the sender's own may be the broadcast.
            record = arrays_of(content).copy()
            measured = {name: statistic_of(content, name, schema) for name, schema in self.measured.items()}
        with refusing("reply/weight"):
            examples = check_examples(metrics.get(EXAMPLES))
        reply.content = content = RecordDict()  # else two copies of every tensor would stand in memory
        delta, norm = self._delta(record)
        statistics = {name: self._statistic(name, measured.pop(name)) for name in self.measured}
        return Admitted(silo, delta, examples, numbers_of(metrics), norm, sender.device, statistics)

    def _content(self, reply: Message) -> RecordDict:
        """The content of the first reply to a message of this round."""
        message = reply.metadata.reply_to_message_id
        if message not in self.asked:
            raise Refused("reply/unasked", f"it answers no message of round {self.round}")
        self.answered.add(message)
        if reply.has_content():
            self.bytes_up += count_bytes(reply.content)
            check_proven(reply.content)  # who forges a reply does not use up the silo's own
        if message in self._settled:
            raise Refused("reply/duplicate", "a second reply to the same message")
        if reply.has_error():  # nobody signs those, and so they don't use up the message
            raise Refused(refusal_code(reply), error_of(reply, reveal=self.reveal))
        self._settled.add(message)
        return reply.content

    def _check_sender(self, sender: Sender, asked: str) -> None:
        """Hold what the reply says of itself against what was asked."""
        if sender.failure:
            raise Refused(sender.code or "silo/failed", sender.complaint)
        if asked and sender.silo not in ("", asked):
            said = f"it calls itself {shown(sender.silo)}, but the message went to {shown(asked)}"
            raise Refused("reply/silo", said)
        if sender.round not in (-1, self.round):
            code = "reply/stale" if sender.round < self.round else "reply/round"
            raise Refused(code, f"it is of round {sender.round}, this is round {self.round}")
        if self.fingerprint and sender.fingerprint != self.fingerprint:
            given = shown(sender.fingerprint[:16]) if sender.fingerprint else "unknown"
            said = f"its base is another: fingerprint {given}, expected {self.fingerprint[:16]!r}"
            raise Refused("reply/base", said)

    def _claim(self, silo: str) -> None:
        """Refuse both nodes that answer under one name: either may be the wrong one."""
        if silo in self._claimed:
            reason = "another node answered under the same name"
            if silo in self._admitted:
                self.drop(silo, reason, "reply/duplicate")
            raise Refused("reply/duplicate", reason)
        self._claimed.add(silo)

    def _statistic(self, name: str, record: ArrayRecord) -> dict[str, Tensor]:
        """Decode a statistic, emptying its record, and check that it can be what it is called."""
        with refusing("reply/tensors"):
            values = from_record(record, self.measured[name], keep=False)
        try:
            for key, value in values.items():
                check_finite(f"{name} of {key}", value)
                check_sign(f"the {name!r} of {shown(key)}", name, value)
        except (AdapterMismatch, WireError) as problem:
            raise Refused("reply/values", str(problem)) from None
        return values

    def _delta(self, record: ArrayRecord) -> tuple[Adapter, float]:
        """Decode a record, emptying it, and its length."""
        with refusing("reply/tensors"):
            decoded = from_record(record, self.schema, keep=False)
        received = self.received.tensors
        tensors: dict[str, Tensor] = {}
        for name in received:
            value = decoded.pop(name)
            if self.replies == "weights":
                value = subtract(value, received[name])
            tensors[name] = value.to(received[name].dtype)
        with refusing("reply/values"):
            return replace(self.received, tensors=tensors), finite_norm(tensors)
