"""Whole checkpoints on disk, single or sharded safetensors: read range by range, and without trust.

Plain reads, no memory map: mapped pages would count as the process's memory, and a bound on it would be none.
"""

from __future__ import annotations

import json
import math
import re
from collections.abc import Mapping
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any, TypeGuard

import torch
from torch import Tensor

from fedmerge.errors import WireError
from fedmerge.wire.folders import file_in, find_folder, read_json
from fedmerge.wire.tensorfile import check_name

SINGLE_FILE = "model.safetensors"
INDEX_FILE = "model.safetensors.index.json"
CONFIG_FILE = "config.json"
PICKLES = ("*.bin", "*.pt", "*.pth", "*.ckpt", "*.pkl")
WANTED = ("*.safetensors", "*.json", "*.txt", "*.model", "*.jinja")
"""What is fetched of a Hub repository: no pickle, no code."""

LARGEST_HEADER = 100_000_000
LARGEST_INDEX = 1 << 26

DTYPES = {
    "F64": torch.float64, "F32": torch.float32, "F16": torch.float16, "BF16": torch.bfloat16,
    "I64": torch.int64, "I32": torch.int32, "I16": torch.int16, "I8": torch.int8, "U8": torch.uint8,
    "BOOL": torch.bool,
}  # fmt: skip
"""safetensors' names of the dtypes that are read; others are quantised or complex."""

TIED = "lm_head.weight"
"""The output head that a model with `tie_word_embeddings` does not have: it is the embeddings."""


@dataclass(frozen=True)
class Entry:
    """Where a tensor lies.

    Args:
        name: the tensor's name.
        path: its file.
        dtype: as stored.
        shape: its shape.
        begin: its first byte in the file.
    """

    name: str
    path: Path
    dtype: torch.dtype
    shape: tuple[int, ...]
    begin: int

    @property
    def coordinates(self) -> int:
        """Number of values."""
        return math.prod(self.shape)

    @property
    def size(self) -> int:
        """Bytes."""
        return self.coordinates * self.dtype.itemsize


@dataclass(frozen=True)
class Checkpoint:
    """A checkpoint's headers; its values stay on disk until they are asked for.

    Args:
        folder: of its files.
        entries: its tensors, sorted by name; without an output head that its config ties to the embeddings.
        config: what its config.json says; empty where there is none.
    """

    folder: Path
    entries: Mapping[str, Entry]
    config: Mapping[str, Any] = field(default_factory=dict)

    @property
    def size(self) -> int:
        """Bytes of all tensors."""
        return sum(entry.size for entry in self.entries.values())

    def read(self, name: str, start: int = 0, stop: int | None = None) -> Tensor:
        """Flat coordinates `start` to `stop` of a tensor, in its stored dtype.

        Raises:
            WireError: the file can't be read, or has become shorter.
        """
        entry = self.entries[name]
        stop = entry.coordinates if stop is None else stop
        width = entry.dtype.itemsize
        values = torch.empty((stop - start) * width, dtype=torch.uint8)
        _fill(entry.path, values.numpy().data, entry.begin + start * width)
        return values.view(entry.dtype)


def open_checkpoint(source: str | Path, *, fetch: bool = True) -> Checkpoint:
    """Read the headers of a checkpoint in the format of transformers.

    Args:
        source: a folder with `model.safetensors`, or with shards and their index; or a Hub id.
        fetch: whether a Hub id may be downloaded.

    Raises:
        ConfigError: there is no such folder, and the Hub does not give it.
        WireError: files that are missing, damaged, pickled, or not what they claim to be.
    """
    folder = find_folder(source, "checkpoint", WANTED, fetch=fetch)
    config_path = file_in(folder, CONFIG_FILE)
    config = {} if config_path is None else read_json(config_path)
    single, index = file_in(folder, SINGLE_FILE), file_in(folder, INDEX_FILE)
    if single is not None:
        entries = read_header(single)
    elif index is not None:
        entries = _read_shards(folder, index)
    else:
        raise WireError(_nothing(folder))
    if config.get("tie_word_embeddings") and len(entries) > 1:
        entries.pop(TIED, None)
    if not entries:
        raise WireError(f"{folder} holds no tensors")
    return Checkpoint(folder, dict(sorted(entries.items())), config)


def holds_checkpoint(folder: Path) -> bool:
    """Whether a folder looks like a whole model's: by its files' names, nothing is read."""
    return any((folder / name).exists() for name in (SINGLE_FILE, INDEX_FILE, CONFIG_FILE))


def _nothing(folder: Path) -> str:
    pickled = sorted(path.name for pattern in PICKLES for path in folder.glob(pattern))
    sentence = f"{folder} has neither {SINGLE_FILE} nor {INDEX_FILE}"
    if not pickled:
        return sentence
    return (
        f"{sentence}; it has {pickled[0]}, a pickle, which can run code and is never read: save the model as "
        "safetensors"
    )


def _read_shards(folder: Path, index: Path) -> dict[str, Entry]:
    """The tensors of all shards that an index names, each where it says."""
    places = read_json(index, LARGEST_INDEX).get("weight_map")
    if not isinstance(places, dict) or not all(isinstance(shard, str) for shard in places.values()):
        raise WireError(f"{index} has no weight_map from tensor names to file names")
    entries: dict[str, Entry] = {}
    for shard in sorted(set(places.values())):
        if len(shard) > 255 or not re.fullmatch(r"[A-Za-z0-9_-][A-Za-z0-9._-]*\.safetensors", shard):
            raise WireError(f"{index} names the shard {shard[:80]!r}, expected a *.safetensors beside it")
        path = file_in(folder, shard)
        if path is None:
            raise WireError(f"{index} names the shard {shard!r}, which is missing")
        for name, entry in read_header(path).items():
            if places.get(name) != shard:
                told = repr(places[name]) if name in places else "no file"
                raise WireError(f"{path} holds {name!r}, for which {index.name} names {told}")
            entries[name] = entry
    lost = sorted(places.keys() - entries.keys())
    if lost:
        name = lost[0] if len(lost[0]) <= 120 else lost[0][:117] + "..."
        raise WireError(f"{index} names {name!r} in {places[lost[0]]!r}, which does not hold it")
    return entries


def read_header(path: Path) -> dict[str, Entry]:
    """The tensors that a safetensors file holds: every byte of it belongs to exactly one of them.

    Raises:
        WireError: the file is damaged, claims more than it holds, or names a tensor as no tensor is named.
    """
    try:
        length, header = _header(path)
        data = path.stat().st_size - 8 - length
    except OSError as error:
        raise WireError(f"{path} can't be read: {error.strerror or error}") from error
    header.pop("__metadata__", None)
    entries, spans = {}, []
    for name, told in header.items():
        check_name(name)
        entry, begin, end = _entry(path, name, told, 8 + length)
        if end > data:
            raise WireError(f"{path}: {name!r} is said to end at byte {end} of {data}: the file is cut short")
        entries[name] = entry
        spans.append((begin, end, name))
    reached = 0
    for begin, end, name in sorted(spans):
        if begin != reached:
            raise WireError(f"{path}: {name!r} begins at byte {begin}, the one before it ends at {reached}")
        reached = end
    if reached != data:
        raise WireError(f"{path}: its tensors take {reached} bytes, it holds {data}")
    return entries


def _header(path: Path) -> tuple[int, dict[str, Any]]:
    """Length and content of a header."""
    size = path.stat().st_size
    with path.open("rb") as file:
        length = int.from_bytes(file.read(8), "little")
        if size < 8 or length > min(size - 8, LARGEST_HEADER):
            raise WireError(
                f"{path} is no whole safetensors file: of {size} bytes its header is to take {length}"
            )
        raw = file.read(length)
    try:
        header = json.loads(raw, object_pairs_hook=_once)
    except (ValueError, RecursionError) as error:
        raise WireError(
            f"{path} is no safetensors file, its header is no JSON: {str(error)[:200]}"
        ) from error
    if not isinstance(header, dict):
        raise WireError(f"{path} is no safetensors file: its header is a {type(header).__name__}")
    return length, header


def _once(pairs: list[tuple[str, Any]]) -> dict[str, Any]:
    found = dict(pairs)
    if len(found) != len(pairs):
        raise ValueError("a name stands in it twice")
    return found


def _entry(path: Path, name: str, told: Any, data_begin: int) -> tuple[Entry, int, int]:
    """One tensor's entry, and its first and last byte among the data."""
    fields = told if isinstance(told, dict) else {}
    kind, shape, span = fields.get("dtype"), fields.get("shape"), fields.get("data_offsets")
    if not isinstance(kind, str) or not _whole_numbers(shape) or not _whole_numbers(span) or len(span) != 2:
        raise WireError(f"{path}: {name!r} has no dtype, shape and data_offsets of whole numbers from 0")
    if kind not in DTYPES:
        raise WireError(
            f"{path}: {name!r} is stored as {kind[:20]}, which has no plain arithmetic; known are "
            f"{', '.join(DTYPES)}"
        )
    entry = Entry(name, path, DTYPES[kind], tuple(shape), data_begin + span[0])
    if span[1] - span[0] != entry.size:
        raise WireError(
            f"{path}: {name!r} of shape {shape} and {kind} takes {entry.size} bytes, its offsets give "
            f"{span[1] - span[0]}"
        )
    return entry, span[0], span[1]


def _whole_numbers(value: Any) -> TypeGuard[list[int]]:
    return isinstance(value, list) and all(type(number) is int and number >= 0 for number in value)


def _fill(path: Path, buffer: memoryview, begin: int) -> None:
    """Read a range of a file into a buffer."""
    try:
        with path.open("rb", buffering=0) as file:
            file.seek(begin)
            while buffer:
                count = file.readinto(buffer)
                if not count:
                    raise WireError(f"{path} has become shorter while it was read")
                buffer = buffer[count:]
    except OSError as error:
        raise WireError(f"{path} can't be read: {error.strerror or error}") from error
