"""How much a reply may be, looked at before anything in it is.

What a silo has to send is known: the tensors of the broadcast, the statistics that were asked for, and
numbers. Whatever is far beyond that is refused unread, so that it costs the server no more than its arrival.
"""

from __future__ import annotations

from collections.abc import Iterable

from flwr.app import ArrayRecord, RecordDict

from fedmerge.server.refusing import Refused
from fedmerge.wire.schema import Schema, shown

MOST_RECORDS = 32
MOST_NUMBERS = 100_000
"""Metrics and config keys; a reply to a train message has some dozens."""

LONGEST_NAME = 1_000
"""Characters of a name; the longest of real adapters have about 150."""

_HEADER_BYTES = 1_024  # of np.save, with room for any shape
_ROOM_BYTES = 2**20


def check_size(content: RecordDict, schemas: Iterable[Schema]) -> None:
    """Refuse a reply with more records, names, numbers or bytes of tensors than what was asked can have.

    Args:
        content: of the reply.
        schemas: of the records of tensors that it is to have.

    Raises:
        Refused: with the reason.
    """
    expected = list(schemas)
    _at_most(len(content), MOST_RECORDS, "records")
    arrays = [record for record in content.values() if isinstance(record, ArrayRecord)]
    tables = [record for record in content.values() if not isinstance(record, ArrayRecord)]
    tensors = sum(len(schema.entries) for schema in expected)
    most = sum(schema.bytes for schema in expected) + tensors * _HEADER_BYTES + _ROOM_BYTES
    _at_most(sum(len(array.data) for record in arrays for array in record.values()), most, "bytes of tensors")
    _at_most(sum(len(record) for record in tables), MOST_NUMBERS, "metrics and keys")
    for name in (*content, *(key for record in content.values() for key in record)):
        if len(name) > LONGEST_NAME:
            raise Refused("reply/too-large", f"the name {shown(name)} has {len(name)} characters")


def _at_most(count: int, most: int, what: str) -> None:
    if count > most:
        raise Refused("reply/too-large", f"it has {count} {what}, at most {most} are taken")
