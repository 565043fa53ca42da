"""Folders of models and adapters: found here or on the Hub, and no file of theirs is taken from elsewhere."""

from __future__ import annotations

import json
import re
from collections.abc import Sequence
from pathlib import Path
from typing import Any

from fedmerge.errors import ConfigError, WireError

HUB_ID = re.compile(r"[A-Za-z0-9][\w.-]*/[A-Za-z0-9][\w.-]*")
LARGEST_JSON = 1 << 20


def is_hub_id(source: object) -> bool:
    """Whether a text has the form of a Hub id.

    Example:
        >>> is_hub_id("owner/name"), is_hub_id("./name"), is_hub_id("a/b/c")
        (True, False, False)
    """
    return isinstance(source, str) and HUB_ID.fullmatch(source) is not None


def find_folder(source: str | Path, what: str, patterns: Sequence[str], *, fetch: bool = True) -> Path:
    """The folder of a model or adapter; a Hub id is downloaded once and then cached.

    Args:
        source: a folder, or a Hub id ("owner/name").
        what: "adapter" or "checkpoint", for the sentences.
        patterns: the files that are wanted of the Hub's; name no pickle.
        fetch: whether the Hub may be asked for what is not in its cache.

    Raises:
        ConfigError: there is no such folder, and the Hub does not have it or can't be reached.
        WireError: a file stands where a folder is expected.
    """
    folder = Path(source)
    if folder.is_dir():
        return folder
    if folder.exists():
        raise WireError(f"{folder} is a file, expected the folder of the {what}")
    if not is_hub_id(source):
        raise ConfigError(
            f"{what} {str(source)!r}: there is no such folder, and it is no Hub id ('owner/name')"
        )
    from huggingface_hub import snapshot_download  # noqa: PLC0415 (only who names a Hub id needs it)

    try:
        return Path(snapshot_download(str(source), allow_patterns=list(patterns), local_files_only=not fetch))
    except Exception as error:
        if not fetch:
            raise ConfigError(
                f"{what} {source!r} is neither a folder here nor in the Hub's cache; `hf download {source}` "
                "fetches it"
            ) from error
        raise ConfigError(
            f"{what} {source!r}: there is no such folder, and the Hub did not give it: it may be "
            f"offline, or have none ({type(error).__name__}: {error})"
        ) from error


def file_in(folder: Path, name: str) -> Path | None:
    """A regular file of a folder; None where there is none.

    Links inside the folder are followed, and those of the Hub's cache, which keeps a snapshot's files beside
    it in `blobs`.

    Raises:
        WireError: the file is a link that leads out of the folder.

    Example:
        >>> import tempfile
        >>> with tempfile.TemporaryDirectory() as text:
        ...     (Path(text) / "config.json").symlink_to("/etc/hostname")
        ...     file_in(Path(text), "config.json")  # doctest: +ELLIPSIS
        Traceback (most recent call last):
        fedmerge.errors.WireError: ...config.json is a link that leads out of its folder; it is not read
    """
    path = folder / name
    if not path.is_symlink():
        return path if path.is_file() else None
    home, target = folder.resolve(), path.resolve()
    allowed = [home]
    if home.parent.name == "snapshots":
        allowed.append(home.parent.parent / "blobs")
    if not any(target.is_relative_to(place) for place in allowed):
        raise WireError(f"{path} is a link that leads out of its folder; it is not read")
    return path if path.is_file() else None


def read_json(path: Path, largest: int = LARGEST_JSON) -> dict[str, Any]:
    """The object of a JSON file.

    Raises:
        WireError: the file is too large, no JSON, or holds something else than an object.
    """
    if path.stat().st_size > largest:
        raise WireError(f"{path} has {path.stat().st_size} bytes, at most {largest} are read")
    try:
        value = json.loads(path.read_text(encoding="utf-8"))
    except (ValueError, RecursionError) as error:
        raise WireError(f"{path} is no JSON: {error}") from error
    if not isinstance(value, dict):
        raise WireError(f"{path} holds a {type(value).__name__}, expected an object")
    return value
