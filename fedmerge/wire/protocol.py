"""What the messages between server and silos are called, and their builders and readers.

The layout is Flower's own (the one of its FedAvg), so that ``MergeStrategy`` can stand where FedAvg stood::

    instruction  {"arrays": broadcast, "config": Instruction}          + "arrays/<candidate>" in evaluations
    reply        {"arrays": delta, "metrics": scores and "num-examples", "fedmerge": who answers}
                                       + "statistics/<name>" where the instruction's "statistics" has the name
    query reply  {"fedmerge": QueryReply}

A Flower app of one's own needs one line in its train function: ``Message(reply_content(delta, examples),
reply_to=message)``. Under a rule that needs statistics of the silos (`fisher`, `regmean`) the instruction's
config names them, "fisher" say, and the reply has a record of float32 tensors for each: "statistics/fisher",
a value from 0 for each coordinate of each tensor of the broadcast, or "statistics/gram", for each LoRA module
by its name a (rank, rank) matrix (``reply_content(delta, examples, statistics=...)``).

Everything read here was written elsewhere: a wrong type is a `WireError`, never a crash.
"""

from __future__ import annotations

import json
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field
from typing import Any

from flwr.app import ArrayRecord, ConfigRecord, MetricRecord, RecordDict
from torch import Tensor

from fedmerge.errors import WireError
from fedmerge.wire.encodings import encode, encode_statistic
from fedmerge.wire.fields import read, read_json, silo_name, texts
from fedmerge.wire.records import to_record
from fedmerge.wire.sender import FEDMERGE, Sender, read_sender

__all__ = [
    "ARRAYS",
    "CANDIDATE_PREFIX",
    "CONFIG",
    "EXAMPLES",
    "FEDMERGE",
    "METRICS",
    "RECEIVED",
    "STATISTICS_PREFIX",
    "Card",
    "Instruction",
    "QueryReply",
    "Sender",
    "failure_content",
    "instruction_content",
    "read_candidates",
    "read_instruction",
    "read_sender",
    "reply_content",
]

ARRAYS = "arrays"
CONFIG = "config"
METRICS = "metrics"
EXAMPLES = "num-examples"
RECEIVED = "received"
CANDIDATE_PREFIX = ARRAYS + "/"
STATISTICS_PREFIX = "statistics/"


@dataclass(frozen=True)
class Instruction:
    """What a train or evaluate message asks for, beside the arrays.

    Args:
        round: from 1; 0 outside of rounds.
        silo: whose data to use; "" stands for the node's own.
        seed: of the run.
        fingerprint: of the base that the server expects; "" where it does not care.
        deadline_seconds: how long the silo may take, from when it starts; 0 is without limit.
        epochs: amount of training; exactly one of `epochs` and `steps` is above 0 in a train message.
        steps: amount of training in optimizer steps.
        stream: a label that is mixed into the random seed; "" in rounds.
        splits: held-out splits to score on, of "validation" and "test".
        labels: the labels that all silos agreed on; empty where the task has none.
        statistics: what the silo measures after training, for the server's rule: "fisher", "gram".
        run: names the run to silos that remember something of it; "" where they have nothing to remember.
        head: another head to score with, "centroid"; "" is the task's own.
        outcomes: whether scores come with what each row contributed to them; only simulations answer that.
        rows: score on at most so many examples of each split, spread evenly over it; 0 is all.
        asked: how many silos get this message; 0 where the server does not say.
    """

    round: int = 0
    silo: str = ""
    seed: int = 0
    fingerprint: str = ""
    deadline_seconds: float = 0.0
    epochs: int = 0
    steps: int = 0
    stream: str = ""
    splits: tuple[str, ...] = ()
    labels: tuple[str, ...] = ()
    statistics: tuple[str, ...] = ()
    run: str = ""
    head: str = ""
    outcomes: bool = False
    rows: int = 0
    asked: int = 0

    def to_config(self, also: Mapping[str, Any] | None = None) -> ConfigRecord:
        """The config record of the message, over the keys of `also` (a user's own train config)."""
        record = ConfigRecord(dict(also or {}))
        record["server-round"] = self.round  # the key that Flower's FedAvg sends and its apps read
        record["round"], record["silo"], record["seed"] = self.round, self.silo, self.seed
        record["fingerprint"], record["stream"] = self.fingerprint, self.stream
        record["deadline-seconds"] = float(self.deadline_seconds)
        record["epochs"], record["steps"] = self.epochs, self.steps
        record["splits"], record["rows"] = ",".join(self.splits), self.rows
        record["labels"] = json.dumps(list(self.labels)) if self.labels else ""
        record["statistics"] = ",".join(self.statistics)
        if self.head or self.outcomes:
            record["head"], record["outcomes"] = self.head, self.outcomes
        if self.run:
            record["run"] = self.run
        if self.asked:
            record["asked"] = self.asked
        return record

    @classmethod
    def from_config(cls, config: Mapping[str, Any]) -> Instruction:
        """Read the config record of a message.

        Raises:
            WireError: a key has a value of another type.
        """
        labels = read(config, "labels", str, "")
        return cls(
            round=read(config, "round", int, 0),
            silo=read(config, "silo", str, ""),
            seed=read(config, "seed", int, 0),
            fingerprint=read(config, "fingerprint", str, ""),
            deadline_seconds=read(config, "deadline-seconds", float, 0.0),
            epochs=read(config, "epochs", int, 0),
            steps=read(config, "steps", int, 0),
            stream=read(config, "stream", str, ""),
            splits=tuple(part for part in read(config, "splits", str, "").split(",") if part),
            rows=read(config, "rows", int, 0),
            labels=texts(read_json(labels, "labels"), "labels") if labels else (),
            statistics=tuple(part for part in read(config, "statistics", str, "").split(",") if part),
            run=read(config, "run", str, ""),
            head=read(config, "head", str, ""),
            outcomes=read(config, "outcomes", bool, False),
            asked=read(config, "asked", int, 0),
        )


def instruction_content(
    broadcast: ArrayRecord,
    instruction: Instruction,
    *,
    candidates: Mapping[str, ArrayRecord] | None = None,
    also: Mapping[str, Any] | None = None,
) -> RecordDict:
    """The content of a train or evaluate message.

    Args:
        broadcast: the adapter that the silo receives; candidate "received" of an evaluation.
        instruction: what to do with it.
        candidates: further adapters to score, by name.
        also: config keys of the user's own.
    """
    content = RecordDict({ARRAYS: broadcast, CONFIG: instruction.to_config(also)})
    for name, arrays in (candidates or {}).items():
        content[CANDIDATE_PREFIX + name] = arrays
    return content


def read_instruction(content: RecordDict) -> Instruction:
    """The instruction of a message.

    Raises:
        WireError: the message has none.
    """
    config = content.get(CONFIG)
    if not isinstance(config, ConfigRecord):
        raise WireError(f"the message has no config record {CONFIG!r}; its records are {sorted(content)}")
    return Instruction.from_config(config)


def read_candidates(content: RecordDict) -> dict[str, ArrayRecord]:
    """The adapters of a message by name: "received", then the further candidates.

    Raises:
        WireError: the message has no "arrays" record.
    """
    if not isinstance(content.get(ARRAYS), ArrayRecord):
        raise WireError(f"the message has no array record {ARRAYS!r}; its records are {sorted(content)}")
    arrays = {key: record for key, record in content.items() if isinstance(record, ArrayRecord)}
    candidates = {RECEIVED: arrays.pop(ARRAYS)}
    for key, record in arrays.items():
        if key.startswith(CANDIDATE_PREFIX):
            candidates[key.removeprefix(CANDIDATE_PREFIX)] = record
    return candidates


def reply_content(
    delta: Mapping[str, Tensor] | None,
    examples: int,
    *,
    metrics: Mapping[str, float | list[float]] | None = None,
    sender: Sender | None = None,
    encoding: str = "exact",
    statistics: Mapping[str, Mapping[str, Tensor]] | None = None,
) -> RecordDict:
    """The content of a reply, for silos and for Flower apps of one's own.

    Args:
        delta: trained minus received, by tensor name and with the broadcast's shapes and dtypes; the trained
            tensors themselves under ``MergeStrategy(replies="weights")``; None in an evaluation.
        examples: training rows; the silo's weight.
        metrics: further numbers, "<candidate>/<split>/<name>" for scores.
        sender: who answers; may be left out outside of fedmerge's own silos.
        encoding: "exact", "bf16" or "fp16"; what the server's strategy was given.
        statistics: what the instruction asked for: "fisher" -> {tensor name: values}, "gram" -> {module:
            matrix}. They travel as float32 whatever the encoding.

    Example:
        >>> import torch
        >>> content = reply_content({"head.weight": torch.zeros(2, 3)}, examples=40)
        >>> sorted(content), content["metrics"]["num-examples"]
        (['arrays', 'metrics'], 40)
    """
    content = RecordDict({METRICS: MetricRecord({**(metrics or {}), EXAMPLES: int(examples)})})
    if delta is not None:
        content[ARRAYS] = to_record(encode(delta, encoding))
    for name, values in (statistics or {}).items():
        content[STATISTICS_PREFIX + name] = to_record(encode_statistic(values))
    if sender is not None:
        content[FEDMERGE] = sender.to_config()
    return content


def failure_content(sender: Sender) -> RecordDict:
    """The content of a reply that reports `sender.failure` and nothing else."""
    return RecordDict({METRICS: MetricRecord({EXAMPLES: 0}), FEDMERGE: sender.to_config()})


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
            labels=None if labels is None else texts(labels, "labels"),
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
        if not isinstance(cards, list) or not isinstance(versions, dict):
            raise WireError("message key 'silos' is not a JSON list, or 'versions' not a JSON table")
        return cls(
            silos=tuple(Card.from_json(card) for card in cards),
            shared=read(record, "shared", bool, False),
            fingerprint=sender.fingerprint,
            device=sender.device,
            gpu_seen=sender.gpu_seen,
            versions={str(name): str(version) for name, version in versions.items()},
            statistics=tuple(part for part in read(record, "statistics", str, "").split(",") if part),
        )
