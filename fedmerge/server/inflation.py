"""How Flower puts a reply together from what it pulled: with a limit, and with one copy of the values less.

A reply travels as objects, pulled one by one and then joined. How many objects there are, and how often an
array repeats one of them, the sender says: a chunk of 5 MB that is named a million times is a 5 TB array,
before anyone has looked at it. Whoever asked knows how large an answer can be.

The names of flwr that are touched here are no public ones; tests/server/test_inflation.py holds them.
"""

from __future__ import annotations

import json
from collections.abc import Callable, Iterator, Mapping
from contextlib import contextmanager
from dataclasses import dataclass, field
from threading import Lock
from typing import Any

from flwr.app import Array, Message
from flwr.supercore.inflatable.inflatable_object import (
    get_object_body,
    get_object_children_ids_from_object_content,
)
from flwr.supercore.inflatable.inflatable_utils import inflatable_class_registry

from fedmerge.errors import WireError
from fedmerge.wire.instruction import read_instruction
from fedmerge.wire.records import count_bytes

BESIDES = 1 << 20
"""Bytes of metrics, names and heads that a reply may have beside its tensors."""

_ARRAY = "Array"


class Oversized(WireError):
    """A reply that holds more than any answer to its question."""


def most_bytes(message: Message) -> int:
    """How large the answer to a message can be: its tensors once, and twice for each statistic asked for.

    A statistic has a float32 for each value of the broadcast, which may be of half precision.
    """
    return (1 + 2 * _statistics(message)) * count_bytes(message.content) + BESIDES


def most_arrays(message: Message) -> int:
    """How many arrays the answer to a message can have: one for each that it has, and for each statistic."""
    arrays = sum(len(record) for record in message.content.array_records.values())
    return (1 + _statistics(message)) * arrays


def _statistics(message: Message) -> int:
    """How many statistics a message asks for."""
    try:
        return len(read_instruction(message.content).statistics)
    except WireError:  # a message of someone else's
        return 0


@contextmanager
def limited(grid: object, most: int) -> Iterator[None]:
    """Of one reply that the grid pulls inside, at most so many bytes are pulled or put together.

    Args:
        grid: Flower's; one that pulls no objects is left alone.
        most: bytes.

    Raises:
        Oversized: inside, as soon as there are more.
    """
    known = inflatable_class_registry[_ARRAY]
    inflatable_class_registry[_ARRAY] = _Joiner(most)  # type: ignore[assignment]
    client = getattr(grid, "_runtime_client", None)
    if client is not None:
        client.PullObject = _Meter(client.PullObject, most)
    try:
        yield
    finally:
        inflatable_class_registry[_ARRAY] = known
        if client is not None:
            del client.PullObject


@dataclass
class _Meter:
    """Pulls objects while fewer than so many bytes came; several threads call it."""

    pull: Callable[[Any], Any]
    most: int
    taken: int = 0
    lock: Lock = field(default_factory=Lock)

    def __call__(self, request: Any) -> Any:
        response = self.pull(request)
        with self.lock:
            self.taken += len(response.object_content)
        if self.taken > self.most:
            raise Oversized(f"more than {self.most} bytes")
        return response


@dataclass
class _Joiner:
    """Stands for Flower's `Array` while a reply is put together: counts before it joins, and joins once."""

    most: int
    taken: int = 0

    def inflate(self, object_content: bytes, children: Mapping[str, Any] | None = None) -> Array:
        """The array of an object and its chunks.

        Raises:
            Oversized: all arrays so far have more bytes than there may be.
            ValueError: it is no such object; or whatever a damaged one leads to.
        """
        chunks = children or {}
        said = json.loads(get_object_body(object_content, Array).decode("utf-8"))
        names = get_object_children_ids_from_object_content(object_content)
        places: list[int] = said["arraychunk_ids"]
        sizes = [len(chunks[name].data) for name in names]
        self.taken += sum(sizes[place] for place in places)
        if self.taken > self.most:
            raise Oversized(f"arrays of more than {self.most} bytes")
        data = b"".join(chunks[names[place]].data for place in places)
        start = 0
        for (
            place
        ) in places:  # chunks live until the whole reply is there: they look into the array from now on
            chunks[names[place]].data = memoryview(data)[start : start + sizes[place]]
            start += sizes[place]
        return Array(dtype=said["dtype"], shape=tuple(said["shape"]), stype=said["stype"], data=data)
