"""Folders and files that are there whole or not at all, and secrets that only their owner can read."""

from __future__ import annotations

import os
import secrets
import shutil
import stat
from collections.abc import Iterable, Mapping
from contextlib import suppress
from dataclasses import dataclass
from pathlib import Path

from fedmerge.errors import ConfigError

SECRET = 0o600
PUBLIC = 0o644
COMMAND = 0o755


@dataclass(frozen=True)
class File:
    """What a file is to hold, and who may read it."""

    content: bytes
    mode: int = PUBLIC


Files = Mapping[str, File]
"""Relative path -> file."""


def write_folder(folder: Path, files: Files) -> None:
    """Write a new folder; it appears under its name when all of it is there.

    Raises:
        ConfigError: there is something of that name already, or it can't be written.
    """
    if folder.exists() or folder.is_symlink():
        raise ConfigError(f"{folder}: there is something already; expected a name that is free")
    staged = folder.with_name(f".{folder.name}.{secrets.token_hex(4)}")
    try:
        folder.parent.mkdir(parents=True, exist_ok=True)
        staged.mkdir(mode=0o700)
        for name, file in files.items():
            _create(staged / name, file)
        staged.rename(folder)
    except OSError as error:
        raise ConfigError(f"{folder} can't be written: {error.strerror}; nothing was left there") from error
    finally:
        shutil.rmtree(staged, ignore_errors=True)


def replace_files(folder: Path, files: Files, gone: Iterable[str] = ()) -> None:
    """Replace files of a folder: all of them are written beside their places before the first takes its.

    Raises:
        ConfigError: one can't be written; none was replaced then.
    """
    mark = secrets.token_hex(4)
    staged = {folder / name: (folder / name).with_name(f".{Path(name).name}.{mark}") for name in files}
    try:
        for (path, beside), file in zip(staged.items(), files.values(), strict=True):
            _create(beside, file)
            _keep_owner(path, beside)
        for path, beside in staged.items():
            beside.replace(path)
    except OSError as error:
        raise ConfigError(f"{folder}: {error.filename}: {error.strerror}") from error
    finally:
        for beside in staged.values():
            beside.unlink(missing_ok=True)
    for name in gone:
        (folder / name).unlink(missing_ok=True)


def _create(path: Path, file: File) -> None:
    """Create a file with its mode from the first moment on; one that is there already is an error."""
    path.parent.mkdir(parents=True, exist_ok=True, mode=0o755)
    descriptor = os.open(path, os.O_WRONLY | os.O_CREAT | os.O_EXCL, file.mode)
    with os.fdopen(descriptor, "wb") as handle:
        os.fchmod(handle.fileno(), file.mode)  # whatever the umask
        handle.write(file.content)
        handle.flush()
        os.fsync(handle.fileno())


def _keep_owner(path: Path, beside: Path) -> None:
    """A replaced file goes on belonging to whom it belonged: root rotates, a service user reads."""
    with suppress(FileNotFoundError, PermissionError):
        before = path.stat()
        os.chown(beside, before.st_uid, before.st_gid)


def readable_by_others(path: Path) -> bool:
    """Whether group or others may read a file."""
    return bool(path.stat().st_mode & (stat.S_IRWXG | stat.S_IRWXO))
