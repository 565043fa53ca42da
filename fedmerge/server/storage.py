"""Files that are whole or not there: written beside their place, flushed to the disk, then renamed."""

from __future__ import annotations

import hashlib
import json
import math
import os
import re
import secrets
import shutil
import tomllib
from collections.abc import Iterator, Mapping
from contextlib import contextmanager
from pathlib import Path
from typing import IO, Any

import safetensors.torch
import tomli_w
from safetensors import SafetensorError
from torch import Tensor

from fedmerge.errors import CheckpointError, WireError
from fedmerge.wire.tensorfile import (
    Pieces,
    in_pieces,
    safetensors_pieces,
    sync_folder,
    write_file,
    write_files,
)

Scalar = str | int | float | bool
Content = bytes | Pieces
"""Of a file: as one, or in pieces that follow each other."""
LOCK = ".lock"
IN_USE = "is in use by another run"
_HIDDEN = re.compile(r"\..+\.[0-9a-f]{8}")


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


def write_bytes(path: Path, data: Content) -> str:
    """Write a file whole or not at all; returns the SHA-256 of its bytes."""
    make_folder(path.parent)
    write_file(path, data)
    return sha256_of(data)


def make_folder(folder: Path) -> None:
    """Make a folder and those above it; each lasts through a power cut once this returns."""
    new = [parent for parent in (folder, *folder.parents) if not parent.exists()]
    folder.mkdir(parents=True, exist_ok=True)
    for path in reversed(new):
        sync_folder(path.parent)


def remove(path: Path) -> None:
    """Remove a file or a folder; no part of a folder is ever seen in its place."""
    if path.is_dir() and not path.is_symlink():
        hidden = path.with_name(f".{path.name}.{secrets.token_hex(4)}")
        shutil.rmtree(path.rename(hidden))
    elif path.exists() or path.is_symlink():
        path.unlink(missing_ok=True)


def is_hidden(path: Path) -> bool:
    """Whether a name is one under which something is written, or removed: a process that died left it."""
    return bool(_HIDDEN.fullmatch(path.name))


def sweep(folder: Path) -> None:
    """Remove what a process that died had not put in its place yet, at any depth."""
    for path in sorted(folder.rglob(".*"), reverse=True):
        if is_hidden(path):
            shutil.rmtree(path, ignore_errors=True) if path.is_dir() else path.unlink(missing_ok=True)


def sha256_of(data: Content) -> str:
    """SHA-256 of a file's content, in hexadecimal."""
    digest = hashlib.sha256()
    for piece in in_pieces(data):
        digest.update(piece)
    return digest.hexdigest()


def write_together(folder: Path, files: Mapping[str, Content]) -> None:
    """Write files of one folder, each whole or not at all; where the last one is, the others are too."""
    make_folder(folder)
    write_files(folder, files)


def write_text(path: Path, text: str) -> str:
    """Write text as UTF-8; returns its SHA-256."""
    return write_bytes(path, _encoded(text))


def write_json(path: Path, value: Mapping[str, Any]) -> str:
    """Write JSON, indented; returns its SHA-256."""
    return write_bytes(path, json_bytes(value))


def json_bytes(value: Mapping[str, Any]) -> bytes:
    """A file of JSON, indented."""
    return _encoded(to_json(value, indent=2) + "\n")


def write_tensors(path: Path, tensors: Mapping[str, Tensor], silo: str = "") -> str:
    """Write a safetensors file, with a silo's name where there is one; returns its SHA-256."""
    return write_bytes(path, tensors_file(tensors, silo))


def tensors_file(tensors: Mapping[str, Tensor], silo: str = "") -> Pieces:
    """The content of a safetensors file, with a silo's name where there is one.

    Names of tensors may be any strings: a server optimizer's are "momentum/<name>".
    """
    return safetensors_pieces(tensors, {"silo": silo} if silo else {})


def read_tensors(path: Path, digest: str) -> tuple[dict[str, Tensor], str]:
    """The tensors of a file by name, sorted, each with memory of its own, and the silo that it names.

    Args:
        path: of the file.
        digest: SHA-256 that it was written with.

    Raises:
        CheckpointError: it is not there, is not what was written, or holds no tensors.
    """
    try:
        data = path.read_bytes()
    except OSError as err:
        raise CheckpointError(f"{path} can't be read ({err.strerror})") from None
    if sha256_of(data) != digest:
        raise CheckpointError(
            f"{path} is damaged: its hash is not the one in state.json; everything else is left as it is"
        )
    try:
        tensors = safetensors.torch.load(data)
        length = int.from_bytes(data[:8], "little")
        about = json.loads(data[8 : 8 + length]).get("__metadata__", {})
    except (SafetensorError, ValueError) as err:
        raise CheckpointError(f"{path} is no safetensors file: {err}") from None
    return {key: tensors[key].clone() for key in sorted(tensors)}, str(about.get("silo", path.stem))


def append_line(file: IO[str], line: str, *, durable: bool = True) -> None:
    """Append a line to an open log; `durable` also to the disk.

    Past Python's buffer, which would keep what the disk refuses, and refuse to be closed.
    """
    left = memoryview(_encoded(f"{line}\n"))
    while left:
        left = left[os.write(file.fileno(), left) :]
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


def _encoded(text: str) -> bytes:
    """UTF-8; half a character, which it can't hold, as JSON's escape of it: reading that gives it back."""
    return text.encode(errors="backslashreplace")
