"""Tensors in a safetensors file: read without trust, written whole, always the same bytes."""

from __future__ import annotations

import json
import os
import re
import secrets
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any

import safetensors.torch
import torch
from safetensors import SafetensorError, safe_open
from torch import Tensor

from fedmerge.errors import WireError

Pieces = Sequence[memoryview]
"""The content of a file, in the order in which it is written: a large one need not be built in memory."""

LONGEST_NAME = 512


def read_tensors(path: Path) -> tuple[dict[str, Tensor], dict[str, str]]:
    """Tensors, sorted by name, and metadata of a safetensors file.

    Raises:
        WireError: the file is damaged, or a name is not fit for a tensor.
    """
    try:
        with safe_open(path, framework="pt") as file:
            names = sorted(file.keys())
            for name in names:
                check_name(name)
            metadata = dict(file.metadata() or {})
            tensors = {name: file.get_tensor(name) for name in names}
    except (SafetensorError, OSError, ValueError) as error:
        raise WireError(f"{path} is no whole safetensors file: {error}") from error
    metadata.pop("format", None)
    return tensors, metadata


def write_tensors(
    path: Path, tensors: Mapping[str, Tensor], metadata: Mapping[str, str] | None = None
) -> None:
    """Write a safetensors file whole or not at all; same tensors, same bytes.

    Raises:
        WireError: a name that is not fit for a tensor, or the disk refuses.
    """
    try:
        write_file(path, tensor_pieces(tensors, metadata or {}))
    except OSError as error:
        raise WireError(f"{path} can't be written: {error}") from error


def tensor_pieces(tensors: Mapping[str, Tensor], metadata: Mapping[str, str]) -> Pieces:
    """A safetensors file of checked names; its metadata in a fixed order, which the library does not keep.

    Raises:
        WireError: a name that is not fit for a tensor, or metadata that are no strings.
    """
    for name in tensors:
        check_name(name)
    for key, value in metadata.items():
        if not isinstance(key, str) or not isinstance(value, str) or key == "format":
            raise WireError(f"metadata {key!r}: {value!r}; expected strings, and 'format' is the file's own")
    return safetensors_pieces(tensors, {"format": "pt", **dict(sorted(metadata.items()))})


def safetensors_pieces(tensors: Mapping[str, Tensor], metadata: Mapping[str, str]) -> Pieces:
    """What `safetensors.torch.save` gives: a header, and then each tensor's own memory, none of it copied.

    The library copies every tensor twice. Here it is asked for the header of tensors with the same names and
    dtypes and no values: order and names of the dtypes are its own. A tensor that is not on the CPU, or not
    contiguous, is copied once.
    """
    dense = {name: tensor.detach().cpu().contiguous() for name, tensor in tensors.items()}
    empty = safetensors.torch.save(
        {name: torch.empty(0, dtype=tensor.dtype) for name, tensor in dense.items()}
    )
    header: dict[str, Any] = {"__metadata__": dict(metadata)} if metadata else {}
    end = 0
    for name, entry in json.loads(empty[8:]).items():
        begin, end = end, end + dense[name].nbytes
        header[name] = {**entry, "shape": list(dense[name].shape), "data_offsets": [begin, end]}
    text = json.dumps(header, separators=(",", ":"), ensure_ascii=False).encode()
    text += b" " * (-len(text) % 8)
    values = [_memory(dense[name]) for name in header if name in dense]
    return [memoryview(len(text).to_bytes(8, "little") + text), *values]


def _memory(tensor: Tensor) -> memoryview:
    """The bytes of a contiguous tensor on the CPU, as they lie there."""
    return tensor.reshape(-1).view(torch.uint8).numpy().data


def check_name(name: str) -> None:
    """Raise unless a tensor's name is ASCII words between single dots: no path, no look-alikes, no control
    bytes.

    Raises:
        WireError: the name, shortened.

    Example:
        >>> check_name("../../etc/passwd")
        Traceback (most recent call last):
        fedmerge.errors.WireError: '../../etc/passwd' is no tensor's name, which is ASCII words between dots
    """
    if len(name) > LONGEST_NAME or not re.fullmatch(r"[A-Za-z0-9_-]+(\.[A-Za-z0-9_-]+)*", name):
        shown = name if len(name) <= 80 else name[:77] + "..."
        raise WireError(f"{shown!r} is no tensor's name, which is ASCII words between dots")


def write_file(path: Path, data: bytes | Pieces) -> None:
    """Write a file whole or not at all; its content as one, or in pieces that follow each other.

    Raises:
        OSError: the disk refuses; a file that was there is as it was.
    """
    write_files(path.parent, {path.name: data})


def write_files(folder: Path, files: Mapping[str, bytes | Pieces]) -> None:
    """Write files of one folder, each whole or not at all, and only when all of them are on the disk.

    They take their places in the order given, so that where the last one is, the others are too. The folder
    is flushed once, not once a file.

    Raises:
        OSError: the disk refuses; where it does so before the first file is in its place, as with a full
            disk, what was there is as it was.
    """
    hidden = {name: folder / f".{name}.{secrets.token_hex(4)}" for name in files}
    try:
        for name, data in files.items():
            _write_durably(hidden[name], data)
        for name in files:
            hidden[name].replace(folder / name)
    except BaseException:
        for path in hidden.values():
            path.unlink(missing_ok=True)
        raise
    sync_folder(folder)


def in_pieces(data: bytes | Pieces) -> Pieces:
    """The content of a file, given as one or in pieces, in pieces."""
    return [memoryview(data)] if isinstance(data, bytes) else data


def _write_durably(path: Path, data: bytes | Pieces) -> None:
    with path.open("xb", buffering=0) as file:
        for piece in in_pieces(data):
            left = piece
            while left:
                left = left[file.write(left) :]
        os.fsync(file.fileno())


def sync_folder(folder: Path) -> None:
    """Put a folder's entries on disk: a rename lasts through a power cut only then."""
    descriptor = os.open(folder, os.O_RDONLY)
    try:
        os.fsync(descriptor)
    finally:
        os.close(descriptor)
