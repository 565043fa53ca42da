"""The digest of a record: what a signature stands for, computed on the raw record before it is decoded.

Every part is framed by its length or has a fixed one, and every value begins with its type: two records that
differ in anything, be it the place at which one name ends and the next begins, give other bytes. Tensors are
hashed where they lie; nothing is copied.
"""

from __future__ import annotations

import hashlib
import struct
from collections.abc import Collection, Iterator

from flwr.app import Array, ArrayRecord, ConfigRecord, MetricRecord

Record = ArrayRecord | MetricRecord | ConfigRecord


def digest(record: Record, *, without: Collection[str] = ()) -> str:
    """The SHA-256 of a record, as 64 hexadecimal digits.

    Of arrays their order counts too; metrics and config are tables, in which it has no meaning.

    Args:
        record: of a message or a reply; nothing in it is believed or decoded.
        without: keys that are left out: a signature can't cover itself.

    Example:
        >>> digest(ConfigRecord({"a": 1, "b": 2})) == digest(ConfigRecord({"b": 2, "a": 1}))
        True
        >>> digest(ConfigRecord({"a": 1})) == digest(ConfigRecord({"a": 1.0}))
        False
    """
    hasher = hashlib.sha256()
    for part in _array_parts(record) if isinstance(record, ArrayRecord) else _table_parts(record, without):
        hasher.update(part)
    return hasher.hexdigest()


def _array_parts(record: ArrayRecord) -> Iterator[bytes]:
    yield b"arrays"
    yield _length(len(record))
    for name, array in record.items():
        yield from _array(name, array)


def _array(name: str, array: Array) -> Iterator[bytes]:
    for text in (name, array.dtype, array.stype, ",".join(str(length) for length in array.shape)):
        yield from _framed(_bytes(text))
    yield from _framed(array.data)


def _table_parts(record: MetricRecord | ConfigRecord, without: Collection[str]) -> Iterator[bytes]:
    names = sorted(name for name in record if name not in without)
    yield b"config" if isinstance(record, ConfigRecord) else b"metrics"
    yield _length(len(names))
    for name in names:
        yield from _framed(_bytes(name))
        yield from _value(record[name])


def _value(value: object) -> Iterator[bytes]:
    """A value of a table: a letter for its type, then what it is."""
    if isinstance(value, list):
        yield b"l" + _length(len(value))
        for item in value:
            yield from _value(item)
    elif isinstance(value, bool):
        yield b"b1" if value else b"b0"
    elif isinstance(value, float):
        yield b"f" + struct.pack("<d", value)
    else:
        letter, plain = _plain(value)
        yield letter
        yield from _framed(plain)


def _plain(value: object) -> tuple[bytes, bytes]:
    if isinstance(value, int):
        return b"i", str(value).encode()
    if isinstance(value, bytes):
        return b"y", value
    return b"s", _bytes(str(value))


def _framed(data: bytes) -> Iterator[bytes]:
    yield _length(len(data))
    yield data


def _length(count: int) -> bytes:
    return struct.pack("<Q", count)


def _bytes(text: str) -> bytes:
    return text.encode("utf-8", "surrogatepass")
