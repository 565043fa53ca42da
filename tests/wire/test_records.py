"""Records travel bit for bit, and what is not what it claims to be is refused before it is decoded."""

from __future__ import annotations

import tracemalloc

import numpy as np
import pytest
import torch
from flwr.app import Array, ArrayRecord, ConfigRecord, MetricRecord, RecordDict
from hypothesis import given, settings
from hypothesis import strategies as st

from fedmerge.errors import WireError
from fedmerge.wire.records import count_bytes, from_record, to_record
from fedmerge.wire.schema import DTYPES, Entry, Schema

SHAPES = [(), (0,), (1,), (3, 4), (2, 0, 3), (2, 3, 4)]


def bits(tensor: torch.Tensor) -> bytes:
    return tensor.contiguous().reshape(-1).view(torch.uint8).numpy().tobytes() if tensor.numel() else b""


def same(one: dict[str, torch.Tensor], two: dict[str, torch.Tensor]) -> bool:
    return list(one) == list(two) and all(
        one[name].dtype == two[name].dtype
        and one[name].shape == two[name].shape
        and bits(one[name]) == bits(two[name])
        for name in one
    )


@pytest.mark.parametrize("dtype", sorted(DTYPES))
@pytest.mark.parametrize("shape", SHAPES)
def test_every_dtype_and_shape_travels_bit_for_bit(dtype, shape):
    tensor = torch.randint(0, 2, shape).to(DTYPES[dtype][0])
    assert same(from_record(to_record({"x": tensor})), {"x": tensor})


@pytest.mark.parametrize("dtype", sorted(set(DTYPES) - {"bfloat16"}))
@pytest.mark.parametrize("shape", SHAPES)
def test_an_array_is_made_as_flower_makes_it(dtype, shape):
    tensor = torch.randint(0, 2, shape).to(DTYPES[dtype][0])
    ours, flowers = to_record({"x": tensor})["x"], Array(tensor.numpy())
    assert ours == flowers and ours.object_id == flowers.object_id


def test_bf16_travels_with_its_nan_payloads_signed_zeros_and_denormals():
    tensor = torch.arange(-(2**15), 2**15, dtype=torch.int32).to(torch.int16).view(torch.bfloat16)
    record = to_record({"x": tensor})
    assert len(record["x"].data) == 2 * tensor.numel()
    assert bits(from_record(record)["x"]) == bits(tensor)


def test_any_flower_app_reads_what_numpy_knows():
    tensor = torch.randn(3, 4)
    assert np.array_equal(to_record({"x": tensor})["x"].numpy(), tensor.numpy())
    assert torch.equal(from_record(ArrayRecord({"x": tensor}))["x"], tensor)


def test_column_by_column_arrays_are_read():
    array = np.asfortranarray(np.arange(24.0).reshape(2, 3, 4))
    assert np.array_equal(from_record(ArrayRecord({"x": Array(array)}))["x"].numpy(), array)


def test_views_and_gradients_travel():
    tensor = torch.randn(4, 3, requires_grad=True).t()[1:]
    assert torch.equal(from_record(to_record({"x": tensor}))["x"], tensor.detach())


def test_what_cannot_travel_is_named():
    with pytest.raises(WireError, match=r"'x' is torch.complex64; what can travel: bfloat16"):
        to_record({"x": torch.zeros(2, dtype=torch.complex64)})


def test_decoding_can_empty_the_record():
    record = to_record({"x": torch.ones(3), "y": torch.ones(2)})
    assert list(from_record(record, keep=False)) == ["x", "y"]
    assert len(record) == 0


def test_booleans_are_made_canonical():
    record = to_record({"x": torch.tensor([True, False])})
    array = record["x"]
    record["x"] = Array(array.dtype, array.shape, array.stype, array.data[:-2] + b"\x07\x00")
    assert bits(from_record(record)["x"]) == b"\x01\x00"


BROADCAST = {
    "a": torch.randn(4, 3, generator=torch.Generator().manual_seed(0)),
    "b": torch.ones(2, 2, dtype=torch.bfloat16),
}
SCHEMA = Schema.of(BROADCAST)


def changed(name: str, **fields) -> ArrayRecord:
    record = to_record(BROADCAST)
    array = record[name]
    given = {"dtype": array.dtype, "shape": array.shape, "stype": array.stype, "data": array.data, **fields}
    record[name] = Array(**given)
    return record


def header(descr: str, shape: str, fortran: str = "False", version: bytes = b"\x01\x00") -> bytes:
    text = f"{{'descr': '{descr}', 'fortran_order': {fortran}, 'shape': {shape}, }}\n".encode()
    return b"\x93NUMPY" + version + len(text).to_bytes(2, "little") + text


VALUES = to_record(BROADCAST)["a"].data[-48:]
BAD_ARRAYS = {
    "transposed": ({"shape": (3, 4)}, r"'a' has shape \(3, 4\), the broadcast has \(4, 3\)"),
    "broadcastable": ({"shape": (1, 3)}, r"shape \(1, 3\)"),
    "scalar": ({"shape": ()}, r"shape \(\)"),
    "other dtype": ({"dtype": "float64"}, r"'a' is 'float64', expected float32"),
    "no dtype": ({"dtype": "\x00" * 9}, r"x00', expected float32"),
    "other serialization": ({"stype": "pickle"}, r"serialized as 'pickle', expected 'numpy.ndarray'"),
    "empty": ({"data": b""}, "does not begin with the header"),
    "garbage": ({"data": b"\xff" * 500}, "does not begin with the header"),
    "half a header": ({"data": b"\x93NUMPY\x01\x00"}, "does not begin"),
    "pickle": ({"data": b"\x80\x04\x95" + b"x" * 100}, "does not begin"),
    "object array": ({"data": header("|O", "(4, 3)") + b"\x80\x04."}, r"claims '\|O' of shape"),
    "header of code": (
        {"data": header("<f4", "(__import__('os').abort(),)") + VALUES},
        "not of a plain array",
    ),
    "4 TB": (
        {"data": header("<f4", "(1000000, 1000000)") + VALUES},
        r"claims '<f4' of shape \(1000000, 1000000\)",
    ),
    "huge lengths": ({"data": header("<f4", "(" + "9" * 300 + ",)") + VALUES}, "claims '<f4' of shape None"),
    "negative": ({"data": header("<f4", "(-4, -3)") + VALUES}, "not of a plain array"),
    "big-endian": ({"data": header(">f4", "(4, 3)") + VALUES}, "claims '>f4'"),
    "header against metadata": (
        {"data": header("<f4", "(3, 4)") + VALUES},
        r"claims '<f4' of shape \(3, 4\)",
    ),
    "truncated": ({"data": to_record(BROADCAST)["a"].data[:-1]}, "carries 47 bytes of values, expected 48"),
    "too long": (
        {"data": to_record(BROADCAST)["a"].data + b"\x00"},
        "carries 49 bytes of values, expected 48",
    ),
    "format 2": ({"data": header("<f4", "(4, 3)", version=b"\x02\x00") + VALUES}, "does not begin"),
}


@pytest.mark.parametrize("case", sorted(BAD_ARRAYS))
def test_an_array_that_is_not_what_was_asked_for_is_refused(case):
    fields, reason = BAD_ARRAYS[case]
    with pytest.raises(WireError, match=reason):
        from_record(changed("a", **fields), SCHEMA)


def test_raw_bytes_are_checked_too():
    with pytest.raises(WireError, match="carries 7 bytes of values, expected 8"):
        from_record(changed("b", data=b"1234567"), SCHEMA)
    with pytest.raises(WireError, match=r"serialized as 'numpy.ndarray', expected 'fedmerge.raw'"):
        from_record(changed("b", stype="numpy.ndarray"), SCHEMA)


def test_names_are_checked_and_shown_safely():
    record = to_record(BROADCAST)
    del record["b"]
    record["../\x00evil" + "x" * 10_000] = record["a"]
    with pytest.raises(WireError, match=r"has no 'b' and has '\.\./\\x00evilx+\.\.\.' too many") as caught:
        from_record(record, SCHEMA)
    assert len(str(caught.value)) < 300
    with pytest.raises(WireError, match="has no 'a', 'b'; 2 tensors are expected"):
        from_record(ArrayRecord(), SCHEMA)


def test_a_record_without_a_schema_is_held_against_its_own_claims():
    with pytest.raises(WireError, match="carries 48 bytes"):
        from_record(changed("a", shape=(4000, 3), data=header("<f4", "(4000, 3)") + VALUES))
    with pytest.raises(WireError, match="claims dtype 'object'"):
        from_record(changed("a", dtype="object"))
    with pytest.raises(WireError, match="shape"):
        from_record(changed("a", shape=(-4, 3)))


def test_no_claim_makes_the_reader_allocate():
    hostile = changed("a", data=header("<f4", "(1000000, 1000000)") + b"\x00" * 1000)
    tracemalloc.start()
    with pytest.raises(WireError):
        from_record(hostile, SCHEMA)
    assert tracemalloc.get_traced_memory()[1] < 100_000
    tracemalloc.stop()


def test_a_pickle_is_never_opened(tmp_path):
    canary = tmp_path / "canary"
    import pickle

    class Canary:
        def __reduce__(self):
            return (open, (str(canary), "w"))

    array = np.array([Canary()], dtype=object)
    import io

    buffer = io.BytesIO()
    np.save(buffer, array, allow_pickle=True)
    for data in (buffer.getvalue(), pickle.dumps(Canary())):
        with pytest.raises(WireError):
            from_record(changed("a", data=data), SCHEMA)
    assert not canary.exists()


@settings(max_examples=300, deadline=None)
@given(position=st.integers(0, 10_000), byte=st.integers(0, 255), cut=st.integers(-20, 20))
def test_any_corruption_is_refused_or_leaves_shapes_and_dtypes(position, byte, cut):
    record = to_record(BROADCAST)
    data = bytearray(record["a"].data)
    data[position % len(data)] = byte
    data = bytes(data[:cut]) if cut < 0 else bytes(data) + b"\x00" * cut
    try:
        tensors = from_record(changed("a", data=data), SCHEMA)
    except WireError:
        return
    assert Schema.of(tensors) == SCHEMA
    assert bits(tensors["b"]) == bits(BROADCAST["b"])
    # Only the values can differ; a changed flag for the storage order is a claim about them.
    assert sorted(bits(tensors["a"])) == sorted(data[-48:])


@settings(max_examples=200, deadline=None)
@given(
    data=st.binary(max_size=300),
    shape=st.lists(st.integers(-3, 10**6), max_size=4),
    dtype=st.text(max_size=10),
)
def test_random_arrays_are_refused(data, shape, dtype):
    with pytest.raises(WireError):
        from_record(changed("a", data=data, shape=tuple(shape), dtype=dtype), SCHEMA)


def test_sizes():
    assert Entry((3, 4), "bfloat16").bytes == 24
    assert SCHEMA.bytes == 48 + 8
    assert Schema.of(BROADCAST, "fp16").bytes == 24 + 8
    content = RecordDict(
        {
            "arrays": to_record({"b": BROADCAST["b"]}),
            "metrics": MetricRecord({"loss": 1.0, "list": [1, 2]}),
            "config": ConfigRecord({"empty": "", "text": "abc", "flag": True}),
        }
    )
    assert count_bytes(content) == (6 + 1 + 8) + (7 + 4 + 8 + 4 + 16) + (6 + 5 + 4 + 3 + 4 + 8)
