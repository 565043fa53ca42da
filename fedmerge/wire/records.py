"""Tensors to and from Flower's `ArrayRecord`, bit for bit.

What NumPy knows travels as an ordinary Flower `Array`, so that any Flower app can read it. NumPy has no
bfloat16: there the little-endian bytes travel as they are, under a serialization name of their own.
"""

from __future__ import annotations

import sys
import warnings
from collections.abc import Mapping

import torch
from flwr.app import Array, ArrayRecord, ConfigRecord, MetricRecord, RecordDict
from torch import Tensor

from fedmerge.errors import WireError
from fedmerge.wire.packing import new_array
from fedmerge.wire.schema import (
    DTYPE_NAMES,
    DTYPES,
    NUMPY_STYPE,
    RAW_STYPE,
    Entry,
    Layout,
    Schema,
    numpy_header,
    shown,
)

if sys.byteorder != "little":  # pragma: no cover
    raise ImportError("fedmerge's records are little-endian, and so must be the machine")


def to_record(tensors: Mapping[str, Tensor]) -> ArrayRecord:
    """The tensors as a Flower record, in their order; they may lie on any device.

    Raises:
        WireError: a dtype that can't travel.

    Example:
        >>> record = to_record({"a": torch.ones(2, dtype=torch.bfloat16)})
        >>> record["a"].dtype, record["a"].stype, from_record(record)["a"]
        ('bfloat16', 'fedmerge.raw', tensor([1., 1.], dtype=torch.bfloat16))
    """
    record = ArrayRecord()
    for name, tensor in tensors.items():  # given as a dict, Flower would make every Array a second time
        record[name] = _to_array(name, tensor)
    return record


def _to_array(name: str, tensor: Tensor) -> Array:
    """What ``Array(tensor.numpy())`` makes, with one copy of the values instead of three."""
    if tensor.dtype not in DTYPE_NAMES:
        raise WireError(f"{shown(name)} is {tensor.dtype}; what can travel: {', '.join(sorted(DTYPES))}")
    dtype, shape = DTYPE_NAMES[tensor.dtype], tuple(tensor.shape)
    values = tensor.detach().cpu().contiguous()
    if tensor.dtype == torch.bfloat16:
        data, stype = values.view(torch.int16).numpy().tobytes(), RAW_STYPE
    else:
        data, stype = b"".join((numpy_header(dtype, shape), values.numpy().data)), NUMPY_STYPE
    return new_array(dtype, shape, stype, data)


def shared_record(tensors: dict[str, Tensor]) -> tuple[ArrayRecord, dict[str, Tensor]]:
    """The tensors as a record, and as tensors that look into its bytes: the values once instead of twice.

    Args:
        tensors: emptied, so that no third copy stands in memory.

    Raises:
        WireError: a dtype that can't travel.

    Example:
        >>> record, views = shared_record({"a": torch.ones(2)})
        >>> len(record), views["a"]
        (1, tensor([1., 1.]))
    """
    record = ArrayRecord()
    for name in list(tensors):
        record[name] = _to_array(name, tensors.pop(name))
    return record, view_record(record)


def view_record(record: ArrayRecord) -> dict[str, Tensor]:
    """The tensors of a record, which look into its bytes: to be read, never written.

    Raises:
        WireError: the record is not what it says.
    """
    schema = Schema.claimed(record)
    layouts = schema.check(record)
    return {name: _view(record[name].data, entry, layouts[name]) for name, entry in schema.entries.items()}


def _view(data: bytes, entry: Entry, layout: Layout) -> Tensor:
    if not entry.bytes or layout.fortran:
        return _to_tensor(data, entry, layout)
    dtype = DTYPES[entry.dtype][0]
    with warnings.catch_warnings():
        warnings.filterwarnings("ignore", "The given buffer is not writable")
        return torch.frombuffer(data, dtype=dtype, offset=layout.offset).reshape(entry.shape)


def from_record(record: ArrayRecord, schema: Schema | None = None, *, keep: bool = True) -> dict[str, Tensor]:
    """The tensors of a record, on the CPU, in the order of the schema.

    Args:
        record: what came over the wire.
        schema: what it must be; None takes the record's own claims, and still holds them against its bytes.
        keep: False empties the record tensor by tensor, so that two copies of it never stand in memory; where
            its bytes may be written, as those of a reply that came packed, they become the tensors' own.

    Raises:
        WireError: the record is not what the schema, or it itself, says. Nothing was decoded then.
    """
    schema = Schema.claimed(record) if schema is None else schema
    layouts = schema.check(record)
    tensors: dict[str, Tensor] = {}
    for name, entry in schema.entries.items():
        array = record[name] if keep else record.pop(name)
        tensors[name] = _to_tensor(array.data, entry, layouts[name], keep=keep)
    return tensors


def _to_tensor(data: bytes, entry: Entry, layout: Layout, *, keep: bool = True) -> Tensor:
    """Copy the values out of checked bytes; those that nobody keeps, and that can be written, are taken."""
    dtype = DTYPES[entry.dtype][0]
    if not entry.bytes:
        return torch.empty(entry.shape, dtype=dtype)
    there = memoryview(data)[layout.offset :]
    raw = bytearray(there) if keep or there.readonly else there
    values = torch.frombuffer(raw, dtype=torch.uint8 if dtype is torch.bool else dtype)
    values = values.ne(0) if dtype is torch.bool else values
    if layout.fortran:
        return values.reshape(entry.shape[::-1]).permute(*reversed(range(len(entry.shape)))).contiguous()
    return values.reshape(entry.shape)


def count_bytes(*contents: RecordDict) -> int:
    """Bytes of messages' contents: arrays with their headers, numbers as 8 bytes, texts, and all names.

    A record that several contents share is gone through once, and counted in each.
    """
    records = {id(record): record for content in contents for record in content.values()}
    sizes = {key: _count_record(record) for key, record in records.items()}
    return sum(len(key) + sizes[id(record)] for content in contents for key, record in content.items())


def _count_record(record: ArrayRecord | MetricRecord | ConfigRecord) -> int:
    if isinstance(record, ArrayRecord):
        return sum(len(name) + len(array.data) for name, array in record.items())
    return sum(len(name) + _count_value(value) for name, value in record.items())


def _count_value(value: object) -> int:
    if isinstance(value, list):
        return sum(_count_value(item) for item in value)
    return len(value) if isinstance(value, str | bytes) else 8
