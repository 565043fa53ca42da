"""Names and paths that go into shell commands, units and certificates: plain ones only."""

from __future__ import annotations

import re
from collections.abc import Collection, Iterable

from fedmerge.errors import ConfigError, nearest

_NAME = re.compile(r"[A-Za-z0-9](?:[A-Za-z0-9-]{0,30}[A-Za-z0-9])?")
_PLAIN_PATH = re.compile(r"/[A-Za-z0-9._/+@-]*")


def checked_name(name: object, where: str) -> str:
    """The name, if it is one of at most 32 letters, digits and hyphens, with no hyphen at an end.

    Raises:
        ConfigError: it is not.

    Example:
        >>> checked_name("hospital-a", "name")
        'hospital-a'
        >>> checked_name("../a", "name")
        Traceback (most recent call last):
        fedmerge.errors.ConfigError: name '../a': expected at most 32 letters, digits and hyphens
    """
    if not isinstance(name, str) or not _NAME.fullmatch(name):
        raise ConfigError(f"{where} {name!r}: expected at most 32 letters, digits and hyphens")
    return name


def checked_path(path: object, where: str, *, plain: bool = True) -> str:
    """The path, if it is absolute, and with `plain` of characters that need no quoting anywhere.

    Raises:
        ConfigError: it is not.
    """
    if not isinstance(path, str) or not path.startswith("/") or ".." in path.split("/"):
        raise ConfigError(f"{where} = {path!r}: expected an absolute path")
    if plain and not _PLAIN_PATH.fullmatch(path):
        raise ConfigError(f"{where} = {path!r}: expected letters, digits and . _ + @ - only")
    if not path.isprintable() or {"'", '"', "\\"} & set(path):
        raise ConfigError(f"{where} = {path!r}: no quotes, backslashes or control characters, please")
    return path


def refuse_unknown(given: Iterable[str], known: Collection[str], where: str) -> None:
    """Refuse a key that there is not.

    Raises:
        ConfigError: there is one; the message names the nearest known key.
    """
    for key in given:
        if key not in known:
            raise ConfigError(f"{where}: unknown key {key!r}; {nearest(key, known)}")
