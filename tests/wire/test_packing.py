"""Records as one array: every byte comes back, and whatever is no packed record is told so."""

from __future__ import annotations

import json

import hypothesis.strategies as st
import pytest
import torch
from flwr.app import Array, ArrayRecord, ConfigRecord, RecordDict
from hypothesis import example, given

from fedmerge.errors import WireError
from fedmerge.wire.digests import digest
from fedmerge.wire.packing import (
    PACKED_STYPE,
    is_packed,
    new_array,
    pack,
    pack_record,
    unpack,
    unpack_record,
)
from fedmerge.wire.records import from_record, to_record

names = st.text(max_size=10)
arrays = st.builds(
    new_array, names, st.lists(st.integers(0, 2**40), max_size=3), names, st.binary(max_size=100)
)
records = st.dictionaries(names, arrays, max_size=5).map(ArrayRecord)


def tensors(**more: torch.Tensor) -> dict[str, torch.Tensor]:
    generator = torch.Generator().manual_seed(0)
    drawn = {name: torch.randn(3, 5, generator=generator) for name in ("a.weight", "b.weight")}
    return drawn | {"half": torch.ones(7, dtype=torch.bfloat16), "none": torch.zeros(0, 2)} | more


def of_table(table: object, body: bytes = b"") -> ArrayRecord:
    text = (table if isinstance(table, str) else json.dumps(table)).encode()
    data = len(text).to_bytes(8, "little") + text
    return of_bytes(data + bytes(-len(data) % 64) + body)


def of_bytes(data: bytes) -> ArrayRecord:
    return ArrayRecord({"packed": Array("uint8", (len(data),), PACKED_STYPE, data)})


@given(records)
def test_every_byte_comes_back(record):
    found = unpack_record(pack_record(record))
    assert list(found) == list(record)
    assert digest(found) == digest(record)


@given(st.binary(min_size=0, max_size=300))
@example(b"")
@example(b"\xff" * 8)
@example(bytes(64))
def test_bytes_of_any_kind_are_refused_or_arrays(data):
    try:
        found = unpack_record(of_bytes(data))
    except WireError:
        return
    assert sum(len(array.data) for array in found.values()) <= len(data)


@given(st.data())
def test_a_changed_byte_is_refused_or_gives_arrays_of_the_same_bytes(data):
    packed = pack_record(to_record(tensors()))["packed"].data
    place = data.draw(st.integers(0, len(packed) - 1))
    changed = packed[:place] + bytes([data.draw(st.integers(0, 255))]) + packed[place + 1 :]
    try:
        found = unpack_record(of_bytes(changed))
    except WireError:
        return
    assert len(found) == len(tensors())


ROW = ["a", "float32", "raw", [1], 64]


@pytest.mark.parametrize(
    ("table", "body", "told"),
    [
        ([ROW], b"", r"has 64 bytes, and its table is of 128"),
        ([ROW], bytes(128), r"has 192 bytes, and its table is of 128"),
        ([ROW, ROW], bytes(128), r"has two arrays of the name 'a'"),
        ([[*ROW[:4], -64]], b"", r"has the row \['a'"),
        ([[*ROW[:4], True]], b"", r"has the row"),
        ([[*ROW[:4], 2**80]], b"", r"has the row"),
        ([[*ROW[:4], 64.0]], bytes(64), r"has the row"),
        ([["a", "float32", "raw", [-1], 64]], bytes(64), r"has the row"),
        ([["a", "float32", "raw", "1", 64]], bytes(64), r"has the row"),
        ([[1, "float32", "raw", [1], 64]], bytes(64), r"has the row"),
        ([ROW[:4]], bytes(64), r"has the row"),
        ({"a": ROW}, bytes(64), r"has the row"),
        ("[" * 100_000, b"", r"is no JSON"),
        ("[1", b"", r"is no JSON"),
    ],
)
def test_tables_that_are_none(table, body, told):
    with pytest.raises(WireError, match=told):
        unpack_record(of_table(table, body))


def test_more_arrays_than_there_may_be_are_refused_before_the_table_is_read():
    record = pack_record(to_record(tensors()))
    assert len(unpack_record(record, 4)) == 4
    with pytest.raises(WireError, match="has more than 3 arrays"):
        unpack_record(record, 3)
    rows = of_table([[str(number), "", "", [], 0] for number in range(5000)])
    with pytest.raises(WireError, match="is too long for 4 arrays"):
        unpack_record(rows, 4)
    content = RecordDict({"one": record, "two": pack_record(to_record(tensors()))})
    with pytest.raises(WireError, match="has more than 3 arrays"):
        unpack(content, 7)


def test_values_lie_where_they_can_be_used_without_a_copy():
    """What came packed and is not kept becomes the tensors; what is kept is copied."""
    record = unpack_record(pack_record(to_record(tensors())))
    data = record["a.weight"].data.obj
    begin = torch.frombuffer(data, dtype=torch.uint8).data_ptr()
    copied = from_record(record)
    taken = from_record(record, keep=False)
    assert all(torch.equal(value, taken[name]) for name, value in tensors().items())
    inside = {name: begin <= value.data_ptr() < begin + len(data) for name, value in taken.items()}
    assert inside == {"a.weight": True, "b.weight": True, "half": True, "none": False}
    assert not any(begin <= value.data_ptr() < begin + len(data) for value in copied.values())
    assert all((value.data_ptr() - begin) % 64 == 0 for value in (taken["a.weight"], taken["half"]))
    taken["a.weight"].add_(1)
    assert torch.equal(taken["b.weight"], tensors()["b.weight"])


def test_contents_are_packed_for_the_way_and_stay_as_they_are():
    shared = to_record(tensors())
    one = RecordDict(
        {"arrays": shared, "config": ConfigRecord({"a": 1}), "single": to_record({"a": torch.ones(1)})}
    )
    two = RecordDict({"arrays": shared})
    known: dict[int, ArrayRecord] = {}
    first, second = pack(one, known), pack(two, known)
    assert first["arrays"] is second["arrays"] and len(first["arrays"]) == 1
    assert first["single"] is one["single"] and first["config"] is one["config"]
    assert one["arrays"] is shared and is_packed(first) and not is_packed(one)
    unpack(first)
    assert {name: digest(record) for name, record in first.items()} == {
        name: digest(record) for name, record in one.items()
    }


def test_what_is_not_packed_is_no_packed_record():
    with pytest.raises(WireError, match="a record of 4 arrays is not packed"):
        unpack_record(to_record(tensors()))
    alone = ArrayRecord({"packed": Array("uint8", (1,), "numpy.ndarray", b"a")})
    content = RecordDict({"arrays": alone})
    unpack(content)
    assert content["arrays"] is alone and not is_packed(content)
