"""Files that are whole or not there: written beside their place, flushed to the disk, then renamed."""

from __future__ import annotations

import hashlib
import json
import math
import os
import tomllib
from collections.abc import Iterator, Mapping
from contextlib import contextmanager
from pathlib import Path
from typing import IO, Any, TextIO

import safetensors.torch
import tomli_w
from torch import Tensor

from fedmerge.errors import CheckpointError, WireError
from fedmerge.wire.tensorfile import write_file, write_files

Scalar = str | int | float | bool
LOCK = ".lock"
IN_USE = "is in use by another run"


@contextmanager
def writing(path: Path) -> Iterator[None]:
    """Turn what the operating system refuses into one sentence.

    Raises:
        CheckpointError: disk full, read-only, no permission; the message names the file.
    """
    try:
        yield
    except OSError as err:
        reason = err.strerror or str(err)
        raise CheckpointError(f"{path} can't be written: {reason}; what stood there is intact") from err
    except WireError as err:
        raise CheckpointError(f"{err}; what stood there is intact") from err


def lock(folder: Path) -> IO[str]:
    """Take the folder for this process; the lock ends with it, however it ends.

    Raises:
        CheckpointError: another process has it.
    """
    handle = (folder / LOCK).open("a", encoding="utf-8")
    if not try_lock(handle):
        handle.close()
        raise CheckpointError(f"{folder} {IN_USE}")
    return handle


def try_lock(handle: IO[str]) -> bool:
    """Whether an open file could be locked; the lock goes when the file is closed."""
    try:
        import fcntl  # noqa: PLC0415 (not on Windows, where one writer is not enforced)

        fcntl.flock(handle, fcntl.LOCK_EX | fcntl.LOCK_NB)
    except ImportError:  # pragma: no cover
        pass
    except BlockingIOError:
        return False
    return True


def write_bytes(path: Path, data: bytes) -> str:
    """Write a file whole or not at all; returns the SHA-256 of its bytes."""
    path.parent.mkdir(parents=True, exist_ok=True)
    write_file(path, data)
    return sha256_of(data)


def sha256_of(data: bytes) -> str:
    """SHA-256 of bytes, in hexadecimal."""
    return hashlib.sha256(data).hexdigest()


def write_together(folder: Path, files: Mapping[str, bytes]) -> None:
    """Write files of one folder, each whole or not at all; where the last one is, the others are too."""
    folder.mkdir(parents=True, exist_ok=True)
    write_files(folder, files)


def write_text(path: Path, text: str) -> str:
    """Write text as UTF-8; returns its SHA-256."""
    return write_bytes(path, text.encode())


def write_json(path: Path, value: Mapping[str, Any]) -> str:
    """Write JSON, indented; returns its SHA-256."""
    return write_bytes(path, json_bytes(value))


def json_bytes(value: Mapping[str, Any]) -> bytes:
    """A file of JSON, indented."""
    return (to_json(value, indent=2) + "\n").encode()


def write_tensors(path: Path, tensors: Mapping[str, Tensor], silo: str = "") -> str:
    """Write a safetensors file, with a silo's name where there is one; returns its SHA-256."""
    return write_bytes(path, tensors_bytes(tensors, silo))


def tensors_bytes(tensors: Mapping[str, Tensor], silo: str = "") -> bytes:
    """A safetensors file, with a silo's name where there is one.

    Names of tensors may be any strings: a server optimizer's are "momentum/<name>".
    """
    dense = {name: _own(tensor) for name, tensor in tensors.items()}
    return safetensors.torch.save(dense, {"silo": silo} if silo else None)


def _own(tensor: Tensor) -> Tensor:
    """The tensor on the CPU with memory of its own: safetensors refuses tensors that share theirs."""
    values = tensor.detach().cpu().contiguous()
    return values if values.untyped_storage().nbytes() == values.nbytes else values.clone()


def append_line(file: TextIO, line: str, *, durable: bool = True) -> None:
    """Append a line to an open log, and flush it; `durable` also to the disk."""
    file.write(line + "\n")
    file.flush()
    if durable:
        os.fsync(file.fileno())


def hash_of(path: Path) -> str:
    """SHA-256 of a file, read in pieces."""
    with path.open("rb") as file:
        return hashlib.file_digest(file, "sha256").hexdigest()


def to_json(value: object, indent: int | None = None) -> str:
    """Standard JSON: what is not finite becomes null, as JSON has no NaN."""
    return json.dumps(_plain(value), indent=indent, ensure_ascii=False, allow_nan=False)


def _plain(value: object) -> object:
    """Dicts, lists, strings and finite numbers."""
    if isinstance(value, Mapping):
        return {str(key): _plain(item) for key, item in value.items()}
    if isinstance(value, list | tuple):
        return [_plain(item) for item in value]
    if isinstance(value, float) and not math.isfinite(value):
        return None
    return value if value is None or isinstance(value, bool | int | float | str) else str(value)


def to_toml(flat: Mapping[str, Scalar]) -> str:
    """A flat run-config as TOML tables.

    Example:
        >>> to_toml({"run.rounds": 4, "train.learning-rate": 0.001}).split()
        ['[run]', 'rounds', '=', '4', '[train]', 'learning-rate', '=', '0.001']
    """
    nested: dict[str, Any] = {}
    for key, value in flat.items():
        *tables, name = key.split(".")
        table = nested
        for part in tables:
            table = table.setdefault(part, {})
        table[name] = value
    return tomli_w.dumps(nested)


def read_toml(path: Path) -> dict[str, object]:
    """A run-config written by `to_toml`, flat again.

    Raises:
        CheckpointError: the file is no TOML.
    """
    try:
        nested = tomllib.loads(path.read_text(encoding="utf-8"))
    except (tomllib.TOMLDecodeError, UnicodeDecodeError) as err:
        raise CheckpointError(f"{path} can't be read: {err}") from None
    return dict(_flat(nested))


def _flat(nested: Mapping[str, Any], prefix: str = "") -> Iterator[tuple[str, object]]:
    for key, value in nested.items():
        if isinstance(value, Mapping):
            yield from _flat(value, f"{prefix}{key}.")
        else:
            yield prefix + key, value
