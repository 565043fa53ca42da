"""All tensors of a record as one array, for the way.

Flower carries each array of a record as two objects, and each object costs its server a call, a dozen queries
of its database and tens of milliseconds of processor time. Packed, a record is one array, with one object for
each 5 MB. Between fedmerge's own ends, records are packed last before they leave and unpacked first when they
come: signatures, schemas and logs are about the tensors. Nothing is decoded here, and no byte of a tensor is
changed.

Layout, little-endian: 8 bytes length of the table; the table, JSON, a list of [name, dtype, serialization,
shape, bytes] for each array; then their bytes. Table and arrays are each filled up with zeros to a multiple
of 64, so that values lie where a processor can read them.
"""

from __future__ import annotations

import json
from collections.abc import Iterator, Sequence

from flwr.app import Array, ArrayRecord, RecordDict

from fedmerge.errors import WireError

PACKED_STYPE = "fedmerge.packed"
"""Serialization name of an array that is a whole record."""

_NAME = "packed"
_ALIGNED = 64
_LENGTH_BYTES = 8
_ROW_BYTES = 1024  # that a row of the table may have on average, where there is a limit


def new_array(dtype: str, shape: Sequence[int], stype: str, data: bytes) -> Array:
    """What ``Array(dtype, shape, stype, data)`` makes, in a fraction of its time."""
    array = Array.__new__(Array)
    vars(array).update(dtype=dtype, shape=tuple(shape), stype=stype, data=data)
    return array


def is_packed(content: RecordDict) -> bool:
    """Whether any record of a message is packed."""
    return any(isinstance(record, ArrayRecord) and _pack(record) is not None for record in content.values())


def pack(content: RecordDict, known: dict[int, ArrayRecord] | None = None) -> RecordDict:
    """The content of a message with each of its array records packed, as a content of its own.

    Args:
        content: left as it is.
        known: packed records by the `id` of what they were made of: what many messages share is packed once.
    """
    known = {} if known is None else known
    packed = RecordDict()
    for name, record in content.items():
        if isinstance(record, ArrayRecord) and len(record) > 1:
            if id(record) not in known:
                known[id(record)] = pack_record(record)
            packed[name] = known[id(record)]
        else:
            packed[name] = record
    return packed


def unpack(content: RecordDict, most: int | None = None) -> None:
    """Put the arrays of packed records in their place; other records stay.

    Args:
        content: of a message.
        most: arrays that there may be in packed records, all together; None: any number.

    Raises:
        WireError: a record is not packed as it must be, or there are more.
    """
    for name, record in list(content.items()):
        if isinstance(record, ArrayRecord) and _pack(record) is not None:
            content[name] = arrays = unpack_record(record, most)
            most = None if most is None else most - len(arrays)


def pack_record(record: ArrayRecord) -> ArrayRecord:
    """A record of one array, which holds all of them.

    Example:
        >>> record = ArrayRecord({name: new_array("uint8", (2,), "any", b"ab") for name in ("one", "two")})
        >>> packed = pack_record(record)
        >>> list(packed), packed["packed"].shape
        (['packed'], (256,))
        >>> [bytes(array.data) for array in unpack_record(packed).values()]
        [b'ab', b'ab']
    """
    table = [[name, a.dtype, a.stype, list(a.shape), len(a.data)] for name, a in record.items()]
    text = json.dumps(table, separators=(",", ":")).encode()
    pieces = [len(text).to_bytes(_LENGTH_BYTES, "little"), text, _filling(_LENGTH_BYTES + len(text))]
    for array in record.values():
        pieces += [array.data, _filling(len(array.data))]
    data = b"".join(pieces)
    packed = ArrayRecord()
    packed[_NAME] = new_array("uint8", (len(data),), PACKED_STYPE, data)
    return packed


def unpack_record(record: ArrayRecord, most: int | None = None) -> ArrayRecord:
    """The arrays of a packed record; they look into one copy of its bytes, which may be written.

    Args:
        record: packed.
        most: arrays that it may have; None: any number. A table of more takes many times its bytes.

    Raises:
        WireError: the record is not packed as it must be, or has more arrays. Nothing of it is believed but
            where arrays begin.
    """
    pack = _pack(record)
    if pack is None:
        raise WireError(f"a record of {len(record)} arrays is not packed")
    data = memoryview(bytearray(pack.data))
    length = int.from_bytes(data[:_LENGTH_BYTES], "little")
    if len(data) < _LENGTH_BYTES or length > len(data) - _LENGTH_BYTES:
        raise WireError(f"a packed record of {len(data)} bytes claims a table of {length}")
    if most is not None and length > _ROW_BYTES * (most + 1):
        raise WireError(f"a packed record's table of {length} bytes is too long for {most} arrays")
    arrays, begin = ArrayRecord(), _filled(_LENGTH_BYTES + length)
    for name, dtype, stype, shape, count in _table(bytes(data[_LENGTH_BYTES : _LENGTH_BYTES + length])):
        if name in arrays:
            raise WireError(f"a packed record has two arrays of the name {name[:80]!r}")
        piece = data[begin : begin + count]
        if len(arrays) == most:
            raise WireError(f"a packed record has more than {most} arrays")
        arrays[name] = new_array(dtype, shape, stype, piece)  # type: ignore[arg-type]
        begin += _filled(count)
    if begin != len(data):
        raise WireError(f"a packed record has {len(data)} bytes, and its table is of {begin}")
    return arrays


def _pack(record: ArrayRecord) -> Array | None:
    """The one array of a packed record."""
    if len(record) != 1 or _NAME not in record or record[_NAME].stype != PACKED_STYPE:
        return None
    return record[_NAME]


def _table(text: bytes) -> Iterator[tuple[str, str, str, list[int], int]]:
    """The rows of the table, each of the right types.

    Raises:
        WireError: anything else.
    """
    try:
        rows = json.loads(text)
    except (ValueError, RecursionError) as error:
        raise WireError(f"a packed record's table is no JSON ({type(error).__name__})") from None
    for row in rows if isinstance(rows, list) else [rows]:
        match row:
            case [str(), str(), str(), list(shape), int(count)] if _whole(*shape, count):
                yield row[0], row[1], row[2], shape, count
            case _:
                raise WireError(f"a packed record's table has the row {str(row)[:80]}")


def _whole(*numbers: object) -> bool:
    return all(isinstance(n, int) and not isinstance(n, bool) and 0 <= n < 1 << 62 for n in numbers)


def _filled(length: int) -> int:
    return -(-length // _ALIGNED) * _ALIGNED


def _filling(length: int) -> bytes:
    return bytes(_filled(length) - length)
