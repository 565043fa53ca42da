"""Tensors to and from Flower's `ArrayRecord`, bit for bit.

What NumPy knows travels as an ordinary Flower `Array`, so that any Flower app can read it. NumPy has no
bfloat16: there the little-endian bytes travel as they are, under a serialization name of their own.
"""

from __future__ import annotations

import sys
from collections.abc import Mapping

import numpy as np
import torch
from flwr.app import Array, ArrayRecord, ConfigRecord, MetricRecord, RecordDict
from torch import Tensor

from fedmerge.errors import WireError
from fedmerge.wire.schema import DTYPE_NAMES, DTYPES, RAW_STYPE, Entry, Layout, Schema, shown

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
    return ArrayRecord({name: _to_array(name, tensor) for name, tensor in tensors.items()})


def _to_array(name: str, tensor: Tensor) -> Array:
    if tensor.dtype not in DTYPE_NAMES:
        raise WireError(f"{shown(name)} is {tensor.dtype}; what can travel: {', '.join(sorted(DTYPES))}")
    values = tensor.detach().cpu().contiguous()
    if tensor.dtype != torch.bfloat16:
        return Array(values.numpy())
    data = values.view(torch.int16).numpy().tobytes()
    return Array(dtype="bfloat16", shape=tuple(values.shape), stype=RAW_STYPE, data=data)


def from_record(record: ArrayRecord, schema: Schema | None = None, *, keep: bool = True) -> dict[str, Tensor]:
    """The tensors of a record, on the CPU, in the order of the schema.

    Args:
        record: what came over the wire.
        schema: what it must be; None takes the record's own claims, and still holds them against its bytes.
        keep: False empties the record tensor by tensor, so that two copies of it never stand in memory.

    Raises:
        WireError: the record is not what the schema, or it itself, says. Nothing was decoded then.
    """
    schema = Schema.claimed(record) if schema is None else schema
    layouts = schema.check(record)
    tensors: dict[str, Tensor] = {}
    for name, entry in schema.entries.items():
        array = record[name] if keep else record.pop(name)
        tensors[name] = _to_tensor(array.data, entry, layouts[name])
    return tensors


def _to_tensor(data: bytes, entry: Entry, layout: Layout) -> Tensor:
    """Copy the values out of checked bytes."""
    dtype = DTYPES[entry.dtype][0]
    if not entry.bytes:
        return torch.empty(entry.shape, dtype=dtype)
    raw = torch.from_numpy(np.frombuffer(data, np.uint8, offset=layout.offset).copy())
    values = raw.ne(0) if dtype is torch.bool else raw.view(dtype)
    if layout.fortran:
        return values.reshape(entry.shape[::-1]).permute(*reversed(range(len(entry.shape)))).contiguous()
    return values.reshape(entry.shape)


def count_bytes(content: RecordDict) -> int:
    """Bytes of a message's content: arrays with their headers, numbers as 8 bytes, texts, and all names."""
    return sum(len(key) + _count_record(record) for key, record in content.items())


def _count_record(record: ArrayRecord | MetricRecord | ConfigRecord) -> int:
    if isinstance(record, ArrayRecord):
        return sum(len(name) + len(array.data) for name, array in record.items())
    return sum(len(name) + _count_value(value) for name, value in record.items())


def _count_value(value: object) -> int:
    if isinstance(value, list):
        return sum(_count_value(item) for item in value)
    return len(value) if isinstance(value, str | bytes) else 8
