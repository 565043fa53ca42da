"""Tensors in a safetensors file: read without trust, written whole, always the same bytes."""

from __future__ import annotations

import json
import os
import re
import secrets
from collections.abc import Mapping
from pathlib import Path

import safetensors.torch
from safetensors import SafetensorError, safe_open
from torch import Tensor

from fedmerge.errors import WireError

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
        write_file(path, tensor_bytes(tensors, metadata or {}))
    except OSError as error:
        raise WireError(f"{path} can't be written: {error}") from error


def tensor_bytes(tensors: Mapping[str, Tensor], metadata: Mapping[str, str]) -> bytes:
    """A safetensors file. The library writes metadata in random order, so the header is written here.

    Raises:
        WireError: a name that is not fit for a tensor, or metadata that are no strings.
    """
    for name in tensors:
        check_name(name)
    for key, value in metadata.items():
        if not isinstance(key, str) or not isinstance(value, str) or key == "format":
            raise WireError(f"metadata {key!r}: {value!r}; expected strings, and 'format' is the file's own")
    dense = {name: tensor.detach().cpu().contiguous().clone() for name, tensor in tensors.items()}
    plain = safetensors.torch.save(dense)
    length = int.from_bytes(plain[:8], "little")
    header = {
        "__metadata__": {"format": "pt", **dict(sorted(metadata.items()))},
        **json.loads(plain[8 : 8 + length]),
    }
    text = json.dumps(header, separators=(",", ":")).encode()
    text += b" " * (-len(text) % 8)
    return len(text).to_bytes(8, "little") + text + plain[8 + length :]


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


def write_file(path: Path, data: bytes) -> None:
    """Write a file whole or not at all.

    Raises:
        OSError: the disk refuses; a file that was there is as it was.
    """
    write_files(path.parent, {path.name: data})


def write_files(folder: Path, files: Mapping[str, bytes]) -> None:
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


def _write_durably(path: Path, data: bytes) -> None:
    with path.open("xb", buffering=0) as file:
        left = memoryview(data)
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
