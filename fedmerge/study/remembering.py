"""An executor that answers from a memo what silos have answered before, and asks them only for the rest."""

from __future__ import annotations

import hashlib
import json
from collections import deque
from dataclasses import dataclass, field, replace
from functools import cached_property
from typing import Any

from flwr.app import ArrayRecord, ConfigRecord, Message, RecordDict
from flwr.app import MetricRecord as Metrics

from fedmerge.engine.executors import Executor
from fedmerge.engine.identity import stamp
from fedmerge.server.reading import metrics_of
from fedmerge.server_app.scoring import FIRST
from fedmerge.silo.tasks.task import OUTCOMES, SIZES
from fedmerge.study.memo import Answer, Memo
from fedmerge.wire.protocol import (
    ARRAYS,
    CONFIG,
    EXAMPLES,
    FEDMERGE,
    METRICS,
    RECEIVED,
    STATISTICS_PREFIX,
    Instruction,
    instruction_content,
    read_candidates,
    read_instruction,
    read_sender,
)
from fedmerge.wire.records import from_record, to_record

_LISTS = (OUTCOMES, SIZES)


@dataclass
class Remembering:
    """Stands between a grid and the executor that computes.

    Args:
        executor: asked for what the memo does not hold.
        memo: of a study.
        scope: hash of what decides answers beside the message: base, rows, settings, versions.
        needs: statistics that round 1 is always asked for, so that rules which need them and rules which do
            not share its training.
        outcomes: whether scores on test rows are kept row by row.
        remembers: False passes everything on: where silos keep parts of the adapter to themselves
            (`lora.private`), an answer depends on what was trained before.
        computed: silos' trainings and scorings that were computed here.
        recalled: those that were known.
        digests: of the adapters that were scored, by candidate name, since it was last cleared.
        labels: of the last scoring.
    """

    executor: Executor
    memo: Memo
    scope: str
    needs: tuple[str, ...] = ()
    outcomes: bool = True
    remembers: bool = True
    computed: int = 0
    recalled: int = 0
    digests: dict[str, str] = field(default_factory=dict)
    labels: tuple[str, ...] = ()
    _ready: list[Message] = field(default_factory=list)
    _known: deque[tuple[ArrayRecord, str]] = field(default_factory=lambda: deque(maxlen=32))
    _asked: dict[str, tuple[Message, _Question]] = field(default_factory=dict)

    def submit(self, message: Message) -> None:
        """Answer from the memo, or pass on what it does not know."""
        kind = message.metadata.message_type.partition(".")[0]
        if not self.remembers or kind not in ("train", "evaluate"):
            self.executor.submit(message)
            return
        question: _Question = (_Training if kind == "train" else _Scoring).of(message, self)
        known = question.known()
        if known is not None:
            self.recalled += 1
            self._ready.append(Message(known, reply_to=message))
            return
        self.computed += 1
        smaller = _like(message, question.unknown())
        self._asked[message.metadata.message_id] = (message, question)
        self.executor.submit(smaller)

    def collect(self, timeout_seconds: float) -> list[Message]:
        """What was known, at once; else what the executor has ready."""
        if self._ready:
            ready, self._ready = self._ready, []
            return ready
        return [self._noted(reply) for reply in self.executor.collect(timeout_seconds)]

    def digest(self, record: ArrayRecord) -> str:
        """`digest_of`, worked out once for the messages that carry the very same record to many silos."""
        known = next((digest for same, digest in self._known if same is record), None)
        if known is None:
            known = digest_of(record)
            self._known.append((record, known))
        return known

    def close(self) -> None:
        """Leave the executor to who opened it."""
        self._ready.clear()
        self._asked.clear()

    def _noted(self, reply: Message) -> Message:
        message, question = self._asked.pop(reply.metadata.reply_to_message_id, (None, None))
        if message is None or question is None:
            return reply
        failed = reply.has_error() or bool(read_sender(reply.content).failure)
        return reply if failed else Message(question.note(reply.content), reply_to=message)


class _Question:
    """One message to one silo, and what of its answer is known."""

    def known(self) -> RecordDict | None:
        """The whole answer, if it can be given."""
        raise NotImplementedError

    def unknown(self) -> RecordDict:
        """The content of a message that asks for the rest."""
        raise NotImplementedError

    def note(self, content: RecordDict) -> RecordDict:
        """Keep what a silo answered to `unknown`; returns the whole answer."""
        raise NotImplementedError


@dataclass
class _Training(_Question):
    content: RecordDict
    order: Instruction
    asked: tuple[str, ...]
    key: str
    memo: Memo

    @classmethod
    def of(cls, message: Message, study: Remembering) -> _Training:
        order = read_instruction(message.content)
        asked = order.statistics
        if order.round == 1 and not order.stream:
            order = replace(order, statistics=tuple(sorted({*asked, *study.needs})))
        broadcast = read_candidates(message.content)[RECEIVED]
        key = _hash([study.scope, "train", study.digest(broadcast), *order.to_config().items()])
        return cls(message.content, order, asked, key, study.memo)

    def known(self) -> RecordDict | None:
        answer = self.memo.answer(self.key)
        return None if answer is None else self._content(answer)

    def unknown(self) -> RecordDict:
        return instruction_content(read_candidates(self.content)[RECEIVED], self.order)

    def note(self, content: RecordDict) -> RecordDict:
        records = {
            key: from_record(record) for key, record in content.items() if isinstance(record, ArrayRecord)
        }
        answer = Answer(records, dict(metrics_of(content)), dict(content[FEDMERGE]))
        self.memo.note_answer(self.key, answer)
        return self._content(answer)

    def _content(self, answer: Answer) -> RecordDict:
        wanted = {ARRAYS, *(STATISTICS_PREFIX + name for name in self.asked)}
        records = {key: to_record(values) for key, values in answer.records.items() if key in wanted}
        return RecordDict(
            {**records, METRICS: Metrics(dict(answer.metrics)), FEDMERGE: ConfigRecord(dict(answer.sender))}
        )


@dataclass
class _Scoring(_Question):
    candidates: dict[str, ArrayRecord]
    order: Instruction
    keys: dict[str, str]
    about_silo: str
    memo: Memo

    @classmethod
    def of(cls, message: Message, study: Remembering) -> _Scoring:
        order = replace(read_instruction(message.content), outcomes=study.outcomes)
        candidates = read_candidates(message.content)
        digests = {name: study.digest(record) for name, record in candidates.items()}
        study.labels = order.labels
        if not order.head:
            first = str(message.content[CONFIG].get(FIRST, RECEIVED))
            study.digests |= {first if name == RECEIVED else name: d for name, d in digests.items()}
        about = (study.scope, order.silo, order.labels)
        keys = {
            f"{name}/{split}": scores_key(*about, digest, split, order.head, order.rows)
            for name, digest in digests.items()
            for split in order.splits
        }
        return cls(candidates, order, keys, _hash([*about, "who answers"]), study.memo)

    def known(self) -> RecordDict | None:
        complete = self.memo.scores(self.about_silo) is not None and not self._missing
        return self._content() if complete else None

    def unknown(self) -> RecordDict:
        first, *others = self._open
        return instruction_content(
            self.candidates[first], self.order, candidates={name: self.candidates[name] for name in others}
        )

    def note(self, content: RecordDict) -> RecordDict:
        first, *_ = asked = self._open
        metrics = metrics_of(content)
        found: dict[str, dict[str, Any]] = {f"{name}/{s}": {} for name in asked for s in self.order.splits}
        for key, value in metrics.items():
            place, _, name = key.rpartition("/")
            candidate, _, split = place.rpartition("/")
            # The first one travelled as the broadcast does.
            place = f"{first if candidate == RECEIVED else candidate}/{split}"
            # Row by row only what is on test rows: nothing is decided by it, and it is long.
            if place in found and (split == "test" or name not in _LISTS):
                found[place][name] = value
        for place, values in found.items():  # a split without rows has no scores: that is noted, too
            self.memo.note_scores(self.keys[place], values)
        who = {"sender": dict(content[FEDMERGE]), "examples": metrics[EXAMPLES]}
        self.memo.note_scores(self.about_silo, who)
        return self._content()

    @property
    def _missing(self) -> list[str]:
        """The candidates of which a split is not known, in their order."""
        return [
            name
            for name in self.candidates
            if any(self.memo.scores(self.keys[f"{name}/{split}"]) is None for split in self.order.splits)
        ]

    @cached_property
    def _open(self) -> list[str]:
        """The candidates that the silo is asked to score: at least one, or there would be no message."""
        return self._missing or list(self.candidates)[:1]

    def _content(self) -> RecordDict:
        who = self.memo.scores(self.about_silo)
        assert who is not None
        metrics: dict[str, Any] = {EXAMPLES: int(who["examples"])}
        for place, key in self.keys.items():
            values = self.memo.scores(key) or {}
            metrics |= {f"{place}/{name}": value for name, value in values.items() if name not in _LISTS}
        sender = who["sender"] | {"round": self.order.round}
        return RecordDict({METRICS: Metrics(metrics), FEDMERGE: ConfigRecord(sender)})


def scores_key(  # noqa: PLR0917 (a key is a tuple of all that decides)
    scope: str, silo: str, labels: tuple[str, ...], digest: str, split: str, head: str = "", rows: int = 0
) -> str:
    """The key under which a silo's scores of an adapter, by its digest, are noted; rows 0 are all of them."""
    return _hash([scope, silo, labels, digest, split, head, *([rows] if rows else [])])


def digest_of(record: ArrayRecord) -> str:
    """SHA-256 of a record's tensors, with their names, dtypes and shapes; in whatever order they come.

    Example:
        >>> import torch
        >>> one, two = {"a": torch.ones(2)}, {"a": torch.zeros(2)}
        >>> digest_of(to_record(one)) == digest_of(to_record(dict(one))) != digest_of(to_record(two))
        True
    """
    found = hashlib.sha256()
    for name, array in sorted(record.items()):
        found.update(json.dumps([name, array.dtype, list(array.shape), array.stype]).encode())
        found.update(array.data)
    return found.hexdigest()


def _hash(values: list[Any]) -> str:
    return hashlib.sha256(json.dumps(values).encode()).hexdigest()


def _like(message: Message, content: RecordDict) -> Message:
    """A message of the same kind, place and id, with another content."""
    metadata = message.metadata
    other = Message(
        content,
        metadata.dst_node_id,
        metadata.message_type,
        ttl=metadata.ttl,
        group_id=metadata.group_id,
    )
    stamp(other, metadata.message_id)
    return other
