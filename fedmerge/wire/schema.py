"""What a record of tensors must look like, checked against its bytes before any of them is decoded.

A record comes from another institution. Its dtype and shape stand twice in it, in Flower's `Array` and in the
header that ``np.save`` wrote, and both are claims: a header of 100 bytes may claim 4 TB. So the header is
matched against a pattern (nothing is evaluated), both claims against the schema, and the length of the
bytes against the size that follows. Only then are as many bytes as the schema says copied.
"""

from __future__ import annotations

import math
import re
from collections.abc import Iterable, Mapping
from dataclasses import dataclass
from functools import lru_cache
from io import BytesIO

import numpy as np
import torch
from flwr.app import Array
from torch import Tensor

from fedmerge.errors import WireError
from fedmerge.wire.encodings import wire_dtype

NUMPY_STYPE = "numpy.ndarray"
RAW_STYPE = "fedmerge.raw"
# Flower's name of a dtype -> torch's, and its code in the header of np.save (none: it travels as raw bytes).
DTYPES: dict[str, tuple[torch.dtype, str]] = {
    "float32": (torch.float32, "<f4"),
    "float64": (torch.float64, "<f8"),
    "float16": (torch.float16, "<f2"),
    "bfloat16": (torch.bfloat16, ""),
    "int64": (torch.int64, "<i8"),
    "int32": (torch.int32, "<i4"),
    "int16": (torch.int16, "<i2"),
    "int8": (torch.int8, "|i1"),
    "uint8": (torch.uint8, "|u1"),
    "bool": (torch.bool, "|b1"),
}
DTYPE_NAMES: dict[torch.dtype, str] = {dtype: name for name, (dtype, _) in DTYPES.items()}
_CODES = {name: code for name, (_, code) in DTYPES.items() if code}
_HEADER = re.compile(
    rb"\{'descr': '(?P<descr>[^']{2,8})', 'fortran_order': (?P<fortran>True|False), "
    rb"'shape': \((?P<shape>[0-9, ]{0,400})\), \} *\n"
)
_LONGEST_NAME = 80


def shown(name: str) -> str:
    """A name from elsewhere as it may stand in a log: printable, and not too long."""
    return ascii(name if len(name) <= _LONGEST_NAME else name[:_LONGEST_NAME] + "...")


def _listed(names: Iterable[str]) -> str:
    ordered = sorted(names)
    more = f" and {len(ordered) - 3} more" if len(ordered) > 3 else ""
    return ", ".join(shown(name) for name in ordered[:3]) + more


@dataclass(frozen=True)
class Entry:
    """Shape and dtype of one tensor of a record."""

    shape: tuple[int, ...]
    dtype: str

    @property
    def bytes(self) -> int:
        """Bytes of its values."""
        return math.prod(self.shape) * DTYPES[self.dtype][0].itemsize


@lru_cache(maxsize=1024)
def numpy_header(dtype: str, shape: tuple[int, ...]) -> bytes:
    """What ``np.save`` writes before the values of such a tensor, row by row; kept, as rounds repeat it.

    Raises:
        KeyError: a dtype that NumPy does not have travels without a header.

    Example:
        >>> len(numpy_header("float32", (2, 3)))
        128
    """
    header = BytesIO()
    claims = {"descr": _CODES[dtype], "fortran_order": False, "shape": shape}
    np.lib.format.write_array_header_1_0(header, claims)
    return header.getvalue()


@dataclass(frozen=True)
class Layout:
    """Where the values lie in the bytes of an `Array`, and whether they are stored column by column."""

    offset: int
    fortran: bool


def check_array(name: str, array: Array, entry: Entry) -> Layout:
    """Where the values of `array` begin, if it is what `entry` says in every respect.

    Raises:
        WireError: its dtype, shape, serialization, header or length is another; the message says which.
    """
    if (array.dtype, tuple(array.shape)) != (entry.dtype, entry.shape):
        _explain(name, array, entry)
    raw = not DTYPES[entry.dtype][1]
    expected = RAW_STYPE if raw else NUMPY_STYPE
    if array.stype != expected:
        raise WireError(f"{shown(name)} is serialized as {shown(array.stype)}, expected {expected!r}")
    layout = Layout(0, False) if raw else _read_header(name, array.data, entry)
    if len(array.data) - layout.offset != entry.bytes:
        given = len(array.data) - layout.offset
        raise WireError(f"{shown(name)} carries {given} bytes of values, expected {entry.bytes}")
    return layout


def _explain(name: str, array: Array, entry: Entry) -> None:
    """Say how dtype or shape differ."""
    if array.dtype != entry.dtype:
        raise WireError(f"{shown(name)} is {shown(array.dtype)}, expected {entry.dtype}")
    shape = str(tuple(array.shape))[:_LONGEST_NAME]
    raise WireError(f"{shown(name)} has shape {shape}, the broadcast has {entry.shape}")


def _read_header(name: str, data: bytes, entry: Entry) -> Layout:
    """Match the header of ``np.save`` (format 1.0) with the entry.

    Raises:
        WireError: there is no such header, or it claims another dtype or shape.
    """
    usual = numpy_header(entry.dtype, entry.shape)
    if data[: len(usual)] == usual:  # bytes, or a look into a packed record's
        return Layout(len(usual), False)
    if data[:8] != b"\x93NUMPY\x01\x00" or len(data) < 10:
        raise WireError(f"{shown(name)} does not begin with the header of a NumPy array")
    end = 10 + int.from_bytes(data[8:10], "little")
    match = _HEADER.fullmatch(bytes(data[10:end]))
    if match is None:
        raise WireError(f"{shown(name)} has a NumPy header that is not of a plain array of numbers")
    descr, shape = match["descr"].decode("latin-1"), _shape(match["shape"])
    if descr != DTYPES[entry.dtype][1] or shape != entry.shape:
        claim = f"{shown(descr)} of shape {str(shape)[:_LONGEST_NAME]}"
        raise WireError(
            f"{shown(name)}: its NumPy header claims {claim}, expected {entry.dtype} of {entry.shape}"
        )
    return Layout(end, match["fortran"] == b"True")


def _shape(text: bytes) -> tuple[int, ...] | None:
    """The shape of a header; None where a length has more digits than any tensor has elements."""
    lengths = [part for part in text.decode("ascii").replace(" ", "").split(",") if part]
    return None if any(len(part) > 18 for part in lengths) else tuple(int(part) for part in lengths)


@dataclass(frozen=True)
class Schema:
    """The tensors that a record must have: no fewer, no more, with these shapes and dtypes.

    Example:
        >>> Schema.of({"head.weight": torch.zeros(2, 3)}, "bf16").entries["head.weight"]
        Entry(shape=(2, 3), dtype='bfloat16')
    """

    entries: Mapping[str, Entry]

    @classmethod
    def of(cls, tensors: Mapping[str, Tensor], encoding: str = "exact") -> Schema:
        """The schema of `tensors` as they travel under `encoding`.

        Raises:
            WireError: a dtype that can't travel, or no encoding of that name.
        """
        return cls({name: _entry_of(name, tensor, encoding) for name, tensor in tensors.items()})

    @classmethod
    def claimed(cls, record: Mapping[str, Array]) -> Schema:
        """What a record says of itself, for a reader that has nothing to compare with.

        Raises:
            WireError: a dtype that we do not know, or a negative length.
        """
        entries: dict[str, Entry] = {}
        for name, array in record.items():
            if array.dtype not in DTYPES or any(length < 0 for length in array.shape):
                raise WireError(
                    f"{shown(name)} claims dtype {shown(array.dtype)}, shape {str(array.shape)[:80]}"
                )
            entries[name] = Entry(tuple(array.shape), array.dtype)
        return cls(entries)

    @property
    def bytes(self) -> int:
        """Bytes of the values of all tensors."""
        return sum(entry.bytes for entry in self.entries.values())

    def check(self, record: Mapping[str, Array]) -> dict[str, Layout]:
        """Where the values of each tensor lie in its bytes; nothing is decoded.

        Raises:
            WireError: the record is not of this schema; the message says in what.
        """
        missing, extra = self.entries.keys() - record.keys(), record.keys() - self.entries.keys()
        if missing or extra:
            said = [f"has no {_listed(missing)}"] * bool(missing) + [f"has {_listed(extra)} too many"] * bool(
                extra
            )
            raise WireError(f"the record {' and '.join(said)}; {len(self.entries)} tensors are expected")
        return {name: check_array(name, record[name], entry) for name, entry in self.entries.items()}


def _entry_of(name: str, tensor: Tensor, encoding: str) -> Entry:
    dtype = wire_dtype(tensor.dtype, encoding)
    if dtype not in DTYPE_NAMES:
        raise WireError(f"{shown(name)} is {dtype}; what can travel: {', '.join(sorted(DTYPES))}")
    return Entry(tuple(tensor.shape), DTYPE_NAMES[dtype])
