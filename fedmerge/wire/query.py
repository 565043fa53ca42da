"""What a node tells about itself: the reply to a query."""

from __future__ import annotations

import json
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field
from typing import Any

from flwr.app import ConfigRecord, RecordDict

from fedmerge.errors import WireError
from fedmerge.wire.fields import label_names, read, read_json, silo_name, versions_of
from fedmerge.wire.sender import FEDMERGE, Sender


@dataclass(frozen=True)
class Card:
    """What a silo tells about its data: counts of rows, and its labels where the task has some."""

    name: str
    examples: int
    validation: int = 0
    test: int = 0
    labels: tuple[str, ...] | None = None

    @classmethod
    def from_json(cls, value: object) -> Card:
        """Read one entry of the "silos" list of a query reply.

        Raises:
            WireError: it is no such entry.
        """
        if not isinstance(value, dict) or not isinstance(value.get("name"), str) or not value["name"]:
            raise WireError("message key 'silos': an entry has no name")
        labels = value.get("labels")
        return cls(
            name=silo_name(value["name"]),
            examples=read(value, "examples", int, 0),
            validation=read(value, "validation", int, 0),
            test=read(value, "test", int, 0),
            labels=None if labels is None else label_names(labels),
        )


@dataclass(frozen=True)
class QueryReply:
    """What a node tells about itself: its silos; in a simulation (`shared`) all, which any node serves.

    `statistics` are those that it can measure; none where its fedmerge is older than they are.
    """

    silos: tuple[Card, ...]
    shared: bool = False
    fingerprint: str = ""
    device: str = ""
    gpu_seen: bool = False
    versions: Mapping[str, str] = field(default_factory=dict)
    statistics: tuple[str, ...] = ()

    def to_content(self) -> RecordDict:
        """The content of the reply to a query."""
        cards: Sequence[Mapping[str, Any]] = [
            {**vars(card), "labels": None if card.labels is None else list(card.labels)}
            for card in self.silos
        ]
        record = ConfigRecord({"silos": json.dumps(cards), "versions": json.dumps(dict(self.versions))})
        record["shared"], record["gpu-seen"] = self.shared, self.gpu_seen
        record["fingerprint"], record["device"] = self.fingerprint, self.device
        record["statistics"] = ",".join(self.statistics)
        return RecordDict({FEDMERGE: record})

    @classmethod
    def from_content(cls, content: RecordDict) -> QueryReply:
        """Read the reply to a query.

        Raises:
            WireError: the reply reports a failure, or a key is missing or of another type.
        """
        record = content.get(FEDMERGE)
        if not isinstance(record, ConfigRecord):
            raise WireError(f"the reply has no config record {FEDMERGE!r}; its records are {sorted(content)}")
        sender = Sender.from_config(record)
        if sender.failure:
            raise WireError(sender.complaint)
        cards = read_json(read(record, "silos", str, "[]"), "silos")
        versions = read_json(read(record, "versions", str, "{}"), "versions")
        if not isinstance(cards, list):
            raise WireError("message key 'silos' is not a JSON list")
        return cls(
            silos=tuple(Card.from_json(card) for card in cards),
            shared=read(record, "shared", bool, False),
            fingerprint=sender.fingerprint,
            device=sender.device,
            gpu_seen=sender.gpu_seen,
            versions=versions_of(versions),
            statistics=tuple(part for part in read(record, "statistics", str, "").split(",") if part),
        )
