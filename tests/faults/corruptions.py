"""What can become of a reply: its records changed by design, its bytes at random."""

from __future__ import annotations

import math
import random
from collections.abc import Callable
from dataclasses import dataclass

import torch
from flwr.app import Array, ArrayRecord, ConfigRecord, Error, MetricRecord, RecordDict

from fedmerge.wire.records import to_record

from .link import Objects, Tamper


def other_array(content: RecordDict, drawn: random.Random) -> RecordDict:
    """Another dtype, shape, serialization or other bytes of one array."""
    record = content["arrays"]
    name = drawn.choice(list(record))
    array = record[name]
    odd = {
        "dtype": ["float64", "int8", "object", "", "bfloat16", "\0"],
        "shape": [(), (1,), (0,), (2**40,), (-1,), tuple(array.shape[::-1]), (*array.shape, 1)],
        "stype": ["pickle", "", "fedmerge.raw", "numpy.ndarray"],
        "data": [b"", array.data[:-1], array.data + b"\0", b"\x80\x04.", bytes(reversed(array.data))],
    }
    field = drawn.choice(sorted(odd))
    kept = {key: getattr(array, key) for key in odd}
    record[name] = Array(**{**kept, field: drawn.choice(odd[field])})
    return content


def other_names(content: RecordDict, drawn: random.Random) -> RecordDict:
    """A tensor missing, too many, or under another name."""
    record = content["arrays"]
    name = drawn.choice(list(record))
    what = drawn.randrange(3)
    if what != 1:
        moved = record.pop(name)
    if what != 0:
        record[drawn.choice(["../x", name + "\u200b", "", "x" * 3000])] = record[name] if what == 1 else moved
    return content


def other_values(content: RecordDict, drawn: random.Random) -> RecordDict:
    """Numbers that are none, or too large."""
    record = content["arrays"]
    name = drawn.choice(list(record))
    array = record[name]
    dtype = getattr(torch, array.dtype or "none", None)
    if not isinstance(dtype, torch.dtype) or not 0 <= math.prod(array.shape) <= 4**3:
        return content  # another change was here before
    value = drawn.choice([float("nan"), float("inf"), float("-inf"), 3e38, 1e-45, -0.0])
    record[name] = to_record({name: torch.full(tuple(array.shape), value).to(dtype)})[name]
    return content


def other_metrics(content: RecordDict, drawn: random.Random) -> RecordDict:
    """Weights and scores that are none."""
    odd = [0, -1, -19.999, 2**62, float("nan"), float("inf"), [1, 2], [], 1e300, 5]
    if drawn.random() < 0.3:
        del content["metrics"]
    else:
        key = drawn.choice(["num-examples", "received/validation/loss", "received/validation/count", "\0"])
        content["metrics"][key] = drawn.choice(odd)
    return content


def other_sender(content: RecordDict, drawn: random.Random) -> RecordDict:
    """Lies about who, when and what."""
    odd = ["a", "", "x" * 500, "\n", 7, -3, 2**60, True, 1.5, b"\xff", ["a"], [1]]
    key = drawn.choice(["silo", "round", "fingerprint", "device", "gpu-seen", "failure", "sentence", "code"])
    content["fedmerge"][key] = drawn.choice(odd)
    return content


def other_records(content: RecordDict, drawn: random.Random) -> RecordDict:
    """Records gone, empty, of other kinds or under other names."""
    key = drawn.choice(list(content))
    held = content.pop(key)
    odd = [None, ArrayRecord(), MetricRecord(), ConfigRecord({"x": "y"}), held]
    record = drawn.choice(odd)
    if record is not None:
        content[drawn.choice([key, key.upper(), "statistics/x", "../" + key])] = record
    return content


def no_content(content: RecordDict, drawn: random.Random) -> Error | None:
    """An error of Flower's, or nothing at all."""
    return drawn.choice([None, Error(2, "patient_0815.txt"), Error(8), Error(99)])


STRUCTURED = [other_array, other_names, other_values, other_metrics, other_sender, other_records, no_content]


def flips(drawn: random.Random, count: int) -> Tamper:
    """Bytes of the objects that the node pushed, flipped, cut or repeated."""

    def tamper(objects: Objects) -> None:
        for _ in range(count):
            name = drawn.choice(sorted(objects))
            content = bytearray(objects[name])
            place = drawn.randrange(len(content)) if content else 0
            what = drawn.randrange(4)
            if what == 0 and content:
                content[place] ^= 1 << drawn.randrange(8)
            elif what == 1:
                del content[place:]
            elif what == 2:
                content[place:place] = content[: drawn.randrange(64)]
            else:
                content[place : place + 8] = drawn.randbytes(8)
            objects[name] = bytes(content)

    return tamper


@dataclass(frozen=True)
class Corruption:
    """What the bad silo does: changes of records, then of bytes."""

    changes: tuple[Callable, ...]
    byte_changes: int
    seed: int
