"""The fingerprint of a base: one hash over weights and tokenizer.

Silos that train on different bases send deltas that don't belong together, and nothing in the shapes
would tell.
"""

from __future__ import annotations

import contextlib
import hashlib
import os
import tempfile
from collections.abc import Iterable
from pathlib import Path

from fedmerge.errors import ConfigError

_TOKENIZER_FILES = (
    "added_tokens.json",
    "bpe.codes",
    "chat_template.jinja",
    "merges.txt",
    "sentencepiece.bpe.model",
    "special_tokens_map.json",
    "spiece.model",
    "tekken.json",
    "tokenizer.json",
    "tokenizer.model",
    "tokenizer_config.json",
    "vocab.json",
    "vocab.txt",
)
_CHUNK = 1 << 22


def fingerprint_of(folder: Path, notes: Path | None = None) -> str:
    """SHA-256 over names and contents of a model folder's weight and tokenizer files.

    Weights are the safetensors files, or the older `.bin` files where there are none. The hash of a
    file is remembered by path, size and time in the user's cache folder, so that it costs one read.

    Args:
        folder: of the base.
        notes: folder in which hashes are remembered instead.

    Returns:
        64 hexadecimal digits.

    Raises:
        ConfigError: the folder holds no weights.
    """
    total = hashlib.sha256()
    for path in (*weight_files(folder), *_tokenizer_files(folder)):
        total.update(f"{path.name}\0{_remembered_hash(path, notes or _cache_folder())}\0".encode())
    return total.hexdigest()


def weight_files(folder: Path) -> list[Path]:
    """The weight files of a model folder, sorted by name."""
    for pattern in ("*.safetensors", "pytorch_model*.bin"):
        found = [path for path in sorted(folder.glob(pattern)) if not path.name.startswith("adapter_")]
        if found:
            return found
    raise ConfigError(f"base folder {str(folder)!r} holds no weights (*.safetensors)")


def _tokenizer_files(folder: Path) -> Iterable[Path]:
    return (folder / name for name in _TOKENIZER_FILES if (folder / name).is_file())


def _remembered_hash(path: Path, notes: Path) -> str:
    state = path.stat()
    key = hashlib.sha256(f"{path.resolve()}\0{state.st_size}\0{state.st_mtime_ns}".encode()).hexdigest()
    note = notes / key
    with contextlib.suppress(OSError, UnicodeDecodeError):
        known = note.read_text(encoding="ascii")
        if len(known) == len(key):
            return known
    digest = _file_hash(path)
    _remember(note, digest)
    return digest


def _file_hash(path: Path) -> str:
    digest = hashlib.sha256()
    with path.open("rb") as file:
        while chunk := file.read(_CHUNK):
            digest.update(chunk)
    return digest.hexdigest()


def _remember(note: Path, digest: str) -> None:
    """Write a note so that a reader sees all or nothing; a folder that can't be written costs a read."""
    with contextlib.suppress(OSError):
        note.parent.mkdir(parents=True, exist_ok=True)
        with tempfile.NamedTemporaryFile("w", dir=note.parent, delete=False, encoding="ascii") as file:
            file.write(digest)
        Path(file.name).replace(note)


def _cache_folder() -> Path:
    root = os.environ.get("XDG_CACHE_HOME") or os.environ.get("LOCALAPPDATA")
    # expanduser leaves "~" where there is no home: a relative folder of that name would be a surprise.
    base = Path(root) if root else Path(os.path.expanduser("~")) / ".cache"  # noqa: PTH111
    return base / "fedmerge" / "fingerprints" if base.is_absolute() else Path(os.devnull) / "none"
