"""What a train or evaluate message asks for: the "config" record, and the arrays beside it."""

from __future__ import annotations

import json
from collections.abc import Mapping
from dataclasses import dataclass
from typing import Any

from flwr.app import ArrayRecord, ConfigRecord, RecordDict

from fedmerge.errors import WireError
from fedmerge.wire.fields import read, read_json, texts

ARRAYS = "arrays"
CONFIG = "config"
RECEIVED = "received"
CANDIDATE_PREFIX = ARRAYS + "/"


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
        asked: how many silos the round asks; 0 where the message does not say.
        federation: whose server asks; it and what follows stand in signed messages alone.
        nonce: of this message and no other; the reply repeats it.
        issued: when the message was made, in seconds since 1970.
        lifetime_seconds: how long after that a silo may begin to answer.
        signature: of the server, over all of the message.
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
    federation: str = ""
    nonce: str = ""
    issued: int = 0
    lifetime_seconds: float = 0.0
    signature: str = ""

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

    def seal(self, record: ConfigRecord) -> None:
        """Write what makes a message one of its own into its config record; the signature comes last."""
        record["federation"], record["nonce"] = self.federation, self.nonce
        record["issued"], record["lifetime-seconds"] = self.issued, float(self.lifetime_seconds)

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
            federation=read(config, "federation", str, ""),
            nonce=read(config, "nonce", str, ""),
            issued=read(config, "issued", int, 0),
            lifetime_seconds=read(config, "lifetime-seconds", float, 0.0),
            signature=read(config, "signature", str, ""),
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
