from __future__ import annotations

import pytest
import torch

from fedmerge.errors import WireError
from fedmerge.wire.encodings import encode, wire_dtype
from fedmerge.wire.records import from_record, to_record
from fedmerge.wire.schema import Schema

TENSORS = {"a": torch.tensor([1.0, 1e-3, -0.0]), "n": torch.tensor([1, 2])}


def test_exact_changes_nothing():
    encoded = encode(TENSORS, "exact")
    assert all(encoded[name] is TENSORS[name] for name in TENSORS)


@pytest.mark.parametrize(("encoding", "dtype"), [("bf16", torch.bfloat16), ("fp16", torch.float16)])
def test_floats_are_rounded_and_whole_numbers_are_not(encoding, dtype):
    encoded = encode(TENSORS, encoding)
    assert encoded["a"].dtype == dtype and torch.equal(encoded["a"], TENSORS["a"].to(dtype))
    assert encoded["n"].dtype == torch.int64
    assert Schema.of(TENSORS, encoding) == Schema.of(encoded)
    assert torch.equal(from_record(to_record(encoded), Schema.of(TENSORS, encoding))["a"], encoded["a"])


def test_what_does_not_fit_is_said():
    with pytest.raises(
        WireError, match=r"'a' reaches 7e\+04, too large for wire.encoding 'fp16'; use 'exact'"
    ):
        encode({"a": torch.tensor([1.0, -7e4])}, "fp16")


def test_nan_is_left_to_the_guard():
    assert encode({"a": torch.tensor([float("nan"), float("inf")])}, "fp16")["a"].isnan()[0]


def test_unknown_names_get_the_nearest():
    with pytest.raises(WireError, match="no encoding 'fp61': did you mean 'fp16'"):
        wire_dtype(torch.float32, "fp61")
