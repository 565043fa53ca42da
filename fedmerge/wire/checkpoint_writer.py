"""Whole checkpoints written: shards as they are computed, and a folder that appears whole or not at all."""

from __future__ import annotations

import json
import math
import os
import secrets
import shutil
from collections.abc import Callable, Iterable, Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path

import torch
from torch import Tensor

from fedmerge.errors import WireError
from fedmerge.wire.checkpoint import DTYPES, INDEX_FILE, SINGLE_FILE, Entry
from fedmerge.wire.tensorfile import check_name, sync_folder, write_file

SHARD_BYTES = 5_000_000_000
"""Largest shard, unless a single tensor is larger: what the Hub's tools write."""

_NAMES = {dtype: name for name, dtype in DTYPES.items()}


@dataclass(frozen=True)
class Shard:
    """One file of a checkpoint, and the tensors in it."""

    name: str
    entries: tuple[Entry, ...]


def shards_of(entries: Iterable[Entry], shard_bytes: int = SHARD_BYTES) -> list[Shard]:
    """Deal tensors out to files: the wider dtypes first, so that every tensor is aligned; then by name.

    Args:
        entries: name, dtype and shape count, not where they lie.
        shard_bytes: a file holds no more, unless it is one tensor.

    Example:
        >>> entries = [Entry(name, Path(), torch.float32, (25,), 0) for name in "abc"]
        >>> [(shard.name, len(shard.entries)) for shard in shards_of(entries, 200)]
        [('model-00001-of-00002.safetensors', 2), ('model-00002-of-00002.safetensors', 1)]
    """
    parts: list[list[Entry]] = [[]]
    filled = 0
    for entry in sorted(entries, key=lambda entry: (-entry.dtype.itemsize, entry.name)):
        if parts[-1] and filled + entry.size > shard_bytes:
            parts.append([])
            filled = 0
        parts[-1].append(entry)
        filled += entry.size
    if len(parts) == 1:
        return [Shard(SINGLE_FILE, tuple(parts[0]))]
    names = [f"model-{number:05d}-of-{len(parts):05d}.safetensors" for number in range(1, len(parts) + 1)]
    return [Shard(name, tuple(part)) for name, part in zip(names, parts, strict=True)]


def write_checkpoint(
    output: Path,
    shards: Sequence[Shard],
    values: Callable[[str], Iterable[Tensor]],
    files: Callable[[], Mapping[str, bytes]],
) -> Path:
    """Write a checkpoint as its tensors are computed: into a hidden folder beside, renamed when all is there.

    Args:
        output: a folder that does not exist, or an empty one.
        shards: from `shards_of`.
        values: a tensor's name -> its values, flat, piece by piece, in its dtype.
        files: the other files, asked for last.

    Returns:
        The folder.

    Raises:
        WireError: the folder holds something, or the disk refuses; nothing is left.
    """
    refuse_filled(output)
    try:
        output.parent.mkdir(parents=True, exist_ok=True)
        hidden = output.parent / f".{output.name}.{secrets.token_hex(4)}.partial"
        hidden.mkdir()
        try:
            for shard in shards:
                _write_shard(hidden / shard.name, shard.entries, values)
            for name, data in files().items():
                write_file(hidden / name, data)
            if len(shards) > 1:
                write_file(hidden / INDEX_FILE, _index(shards))
            refuse_filled(output)
            hidden.rename(output)
        except BaseException:
            shutil.rmtree(hidden, ignore_errors=True)
            raise
        sync_folder(output.parent)
    except OSError as error:
        raise WireError(f"{output} can't be written: {error.strerror or error}") from error
    return output


def refuse_filled(folder: Path) -> None:
    """Raise where a folder to be written holds something.

    Raises:
        WireError: it is a file, or a folder with anything in it.
    """
    if folder.is_symlink() or folder.is_file() or (folder.is_dir() and any(folder.iterdir())):
        raise WireError(f"{folder}: there is something already; expected a new or an empty folder")


def _write_shard(path: Path, entries: Sequence[Entry], values: Callable[[str], Iterable[Tensor]]) -> None:
    with path.open("xb", buffering=0) as file:
        _write_all(file.fileno(), memoryview(_header(entries)))
        for entry in entries:
            written = 0
            for piece in values(entry.name):
                if piece.dtype != entry.dtype:
                    raise WireError(f"{entry.name!r}: values are {piece.dtype}, expected {entry.dtype}")
                flat = piece.detach().cpu().reshape(-1).contiguous().view(torch.uint8)
                _write_all(file.fileno(), flat.numpy().data)
                written += piece.numel()
            if written != entry.coordinates:
                raise WireError(f"{entry.name!r}: {written} values came, expected {entry.coordinates}")
        os.fsync(file.fileno())


def _header(entries: Sequence[Entry]) -> bytes:
    header: dict[str, object] = {"__metadata__": {"format": "pt"}}
    begin = 0
    for entry in entries:
        check_name(entry.name)
        header[entry.name] = {
            "dtype": _NAMES[entry.dtype],
            "shape": list(entry.shape),
            "data_offsets": [begin, begin + entry.size],
        }
        begin += entry.size
    text = json.dumps(header, separators=(",", ":")).encode()
    text += b" " * (-len(text) % 8)
    return len(text).to_bytes(8, "little") + text


def _write_all(descriptor: int, data: memoryview) -> None:
    while data:
        data = data[os.write(descriptor, data) :]


def _index(shards: Sequence[Shard]) -> bytes:
    places = {entry.name: shard.name for shard in shards for entry in shard.entries}
    entries = [entry for shard in shards for entry in shard.entries]
    metadata = {
        "total_parameters": sum(math.prod(entry.shape) for entry in entries),
        "total_size": sum(entry.size for entry in entries),
    }
    index = {"metadata": metadata, "weight_map": dict(sorted(places.items()))}
    return (json.dumps(index, indent=2) + "\n").encode()
