"""A site's own log: a line of JSON for each message that left it, written before it leaves.

Whoever answers for the data reads there what was told to whom: names, shapes and bytes of tensors, every
number and text, and a hash of each record. A refusal stands there with the sentence that the server does not
get. The file is opened for each message, so that it can be rotated at any time.

A line has: time (UTC), silo, kind (query, train, evaluate), to (the federation), run, round, flower-run,
message, outcome (sent; refused or failed, then also error, code and sentence), bytes, records.
"""

from __future__ import annotations

import fcntl
import hashlib
import json
import math
import os
import time
from collections.abc import Mapping
from dataclasses import dataclass
from datetime import UTC, datetime
from pathlib import Path
from typing import Any

from flwr.app import Array, ArrayRecord, ConfigRecord, Message, MetricRecord, RecordDict

from fedmerge.errors import FedMergeError, PolicyError

CODE = "site/log"
"""What the server is told where the log can't be written; its reply says nothing else."""

_MODE = 0o640


@dataclass(frozen=True)
class Departure:
    """One reply, and what it answers.

    Args:
        silo: who answers.
        federation: whom.
        message: that is answered.
        content: of the reply.
        problem: why the work was refused or failed; None where it was done.
    """

    silo: str
    federation: str
    message: Message
    content: RecordDict
    problem: BaseException | None = None

    def entry(self) -> dict[str, Any]:
        """The line, before it is JSON."""
        metadata, asked = self.message.metadata, _asked(self.message)
        records = {name: described(record) for name, record in self.content.items()}
        return {
            "time": datetime.fromtimestamp(time.time(), UTC).isoformat(timespec="milliseconds"),
            "silo": self.silo,
            "kind": metadata.message_type,
            "to": self.federation,
            "run": asked.get("run", ""),
            "round": asked.get("round", 0),
            "flower-run": metadata.run_id,
            "message": metadata.message_id,
            **_outcome(self.problem),
            "bytes": sum(record.get("bytes", 0) for record in records.values()),
            "records": records,
        }


def write(log: Path, departure: Departure) -> None:
    """Append a line, and return once it lies on the disk.

    Raises:
        PolicyError: it can't be written; the log is as it was, and nothing may leave.
    """
    line = json.dumps(departure.entry(), default=str) + "\n"
    try:
        _append(log, line.encode("utf-8"))
    except OSError as err:
        raise PolicyError(
            f"the site's log {str(log)!r} can't be written ({err.strerror or err}): nothing leaves", code=CODE
        ) from err


def described(record: ArrayRecord | MetricRecord | ConfigRecord) -> dict[str, Any]:
    """What a record says: tensors by dtype, shape and bytes, numbers and texts as they are, and its SHA-256.

    Example:
        >>> described(MetricRecord({"num-examples": 40}))["values"]
        {'num-examples': 40}
    """
    if isinstance(record, ArrayRecord):
        tensors = {name: [array.dtype, list(array.shape), len(array.data)] for name, array in record.items()}
        total = sum(len(array.data) for array in record.values())
        return {"tensors": tensors, "bytes": total, "sha256": _tensor_digest(record)}
    values = {name: _plain(value) for name, value in record.items()}
    text = json.dumps(values, sort_keys=True, default=str)
    return {"values": values, "bytes": len(text), "sha256": hashlib.sha256(text.encode()).hexdigest()}


def _append(path: Path, line: bytes) -> None:
    """All of the line or nothing: a full disk leaves no half of it."""
    new = not path.exists()
    handle = os.open(path, os.O_WRONLY | os.O_APPEND | os.O_CREAT | os.O_CLOEXEC, _MODE)
    try:
        if new:
            os.fchmod(handle, _MODE)  # whatever the umask: the group is whoever reads logs
        fcntl.flock(handle, fcntl.LOCK_EX)
        before = os.fstat(handle).st_size
        try:
            if os.write(handle, line) < len(line):
                raise OSError("the disk took only a part of the line")
            os.fsync(handle)
        except OSError:
            os.ftruncate(handle, before)
            raise
    finally:
        os.close(handle)


def _asked(message: Message) -> Mapping[str, Any]:
    config = message.content.get("config") if message.has_content() else None
    return dict(config) if isinstance(config, ConfigRecord) else {}


def _outcome(problem: BaseException | None) -> dict[str, str]:
    if problem is None:
        return {"outcome": "sent"}
    code = problem.code if isinstance(problem, FedMergeError) else ""
    return {
        "outcome": "refused" if isinstance(problem, PolicyError) else "failed",
        "error": type(problem).__name__,
        "code": code,
        "sentence": str(problem),
    }


def _tensor_digest(record: ArrayRecord) -> str:
    digest = hashlib.sha256()
    for name, array in record.items():
        digest.update(_head(name, array))
        digest.update(array.data)
    return digest.hexdigest()


def _head(name: str, array: Array) -> bytes:
    return json.dumps([name, array.dtype, list(array.shape), array.stype, len(array.data)]).encode()


def _plain(value: object) -> object:
    """JSON has no NaN, and no bytes."""
    if isinstance(value, float) and not math.isfinite(value):
        return str(value)
    if isinstance(value, bytes):
        return f"{len(value)} bytes, sha256 {hashlib.sha256(value).hexdigest()}"
    return [_plain(item) for item in value] if isinstance(value, list) else value
