from __future__ import annotations

import pytest
import torch
from flwr.app import Array, ArrayRecord, ConfigRecord, MetricRecord, RecordDict
from flwr.common.serde import recorddict_from_proto, recorddict_to_proto
from hypothesis import given
from hypothesis import strategies as st

from fedmerge.wire.digests import digest
from fedmerge.wire.records import to_record


def arrays(*entries):
    record = ArrayRecord()
    for name, dtype, shape, stype, data in entries:
        record[name] = Array(dtype=dtype, shape=shape, stype=stype, data=data)
    return record


@pytest.mark.parametrize(
    ("one", "other"),
    [
        (arrays(("ab", "c", (1,), "d", b"e")), arrays(("a", "bc", (1,), "d", b"e"))),
        (arrays(("a", "b", (1,), "c", b"de")), arrays(("a", "b", (1,), "cd", b"e"))),
        (arrays(("a", "b", (1, 2), "c", b"")), arrays(("a", "b", (12,), "c", b""))),
        (arrays(("a", "b", (2, 3), "c", b"x")), arrays(("a", "b", (3, 2), "c", b"x"))),
        (
            arrays(("a", "b", (1,), "c", b"x"), ("d", "b", (1,), "c", b"x")),
            arrays(("a", "b", (1,), "c", b"x")),
        ),
        (
            arrays(("a", "b", (1,), "c", b"x"), ("d", "b", (1,), "c", b"y")),
            arrays(("d", "b", (1,), "c", b"y"), ("a", "b", (1,), "c", b"x")),
        ),
        (ConfigRecord({"a": 1}), ConfigRecord({"a": True})),
        (ConfigRecord({"a": 0}), ConfigRecord({"a": 0.0})),
        (ConfigRecord({"a": 0.0}), ConfigRecord({"a": -0.0})),
        (ConfigRecord({"a": "1"}), ConfigRecord({"a": b"1"})),
        (ConfigRecord({"a": "1"}), ConfigRecord({"a": 1})),
        (ConfigRecord({"a": "b", "c": ""}), ConfigRecord({"a": "", "c": "b"})),
        (ConfigRecord({"a": ["bc", ""]}), ConfigRecord({"a": ["b", "c"]})),
        (ConfigRecord({"a": 1}), MetricRecord({"a": 1})),
        (ConfigRecord(), MetricRecord()),
        (ArrayRecord(), MetricRecord()),
    ],
)
def test_what_differs_has_another_digest(one, other):
    assert digest(one) != digest(other)


values = st.one_of(
    st.integers(-(2**63), 2**63 - 1), st.floats(allow_nan=False), st.booleans(), st.text(), st.binary(),
    st.lists(st.integers(-5, 5), min_size=1), st.lists(st.floats(allow_nan=False), min_size=1),
    st.lists(st.text(max_size=3), min_size=1), st.lists(st.booleans(), min_size=1),
)  # fmt: skip


@given(st.dictionaries(st.text(max_size=5), values, max_size=4))
def test_a_table_has_its_digest_on_the_other_side_too(table):
    record = ConfigRecord(table)
    sent = recorddict_from_proto(recorddict_to_proto(RecordDict({"c": record})))["c"]
    assert digest(sent) == digest(record) == digest(ConfigRecord.inflate(record.deflate()))
    assert digest(record, without=[*table]) == digest(ConfigRecord())


def test_arrays_have_their_digest_on_the_other_side_too():
    """Flower keeps the order of tensors on both of its ways, and so a signature may cover it."""
    record = to_record({name: torch.full((2, index + 1), index) for index, name in enumerate("zmabq")})
    sent = recorddict_from_proto(recorddict_to_proto(RecordDict({"a": record})))["a"]
    children = ArrayRecord.inflate(record.deflate(), record.children)
    assert digest(sent) == digest(record) == digest(children)


def test_the_digest_is_what_it_was():
    """Both sides may have other versions of fedmerge: the bytes that are hashed are part of the protocol."""
    record = arrays(
        ("a", "float32", (2,), "numpy.ndarray", b"12345678"),
        ("b", "bfloat16", (1, 2), "fedmerge.raw", b"1234"),
    )
    assert digest(record)[:16] == "ea5e55aa9f16b7f4"
    assert (
        digest(ConfigRecord({"a": 1, "b": "x", "c": [1.5], "d": True, "e": b"y"}))[:16] == "6c19f71d4e48a6e1"
    )
