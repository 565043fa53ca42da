"""The server's own file: its federation, its key, the silos that it believes, and where its runs lie.

The environment variable FEDMERGE_SERVER of the ServerApp's process holds the path of `server.toml`. With it,
every message is signed and every reply has to be; without it (simulations) nothing is.
"""

from __future__ import annotations

import logging
import os
import re
import tomllib
from collections.abc import Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from cryptography.hazmat.primitives import serialization
from cryptography.hazmat.primitives.asymmetric.ed25519 import Ed25519PublicKey

from fedmerge.config import Config, read_config
from fedmerge.errors import ConfigError, nearest
from fedmerge.server.identity import Identity, Member, Members
from fedmerge.wire.signatures import load_key, load_public

logger = logging.getLogger(__name__)

VARIABLE = "FEDMERGE_SERVER"
_SERVER_KEYS = ("federation", "signing-key", "roster", "runs")
_WATCHER_KEYS = ("metrics",)  # of the same file, read by `fedmerge deploy watch`
_MEMBER_KEYS = ("key", "max-examples", "revoked")
_NAME = re.compile(r"[A-Za-z0-9](?:[A-Za-z0-9-]{0,62}[A-Za-z0-9])?")


@dataclass(frozen=True)
class Authority:
    """What `server.toml` says.

    Args:
        identity: with what the server signs, and whose replies it believes.
        runs: the folder below which a run's folder lies, unless its config has an absolute path.
    """

    identity: Identity
    runs: Path

    def placed(self, config: Config) -> Config:
        """The run-config with its folder below `runs`.

        Raises:
            ConfigError: its `run.output` leads out of there.
        """
        output = Path(config.run.output).expanduser() if config.run.output else Path(config.folder.name)
        if ".." in output.parts:
            raise ConfigError(f"run.output = {config.run.output!r} leads out of {self.runs}")
        return read_config({**config.flat, "run.output": str(self.runs / output)})


def authority() -> Authority | None:
    """What the environment's `server.toml` says; None where there is none.

    Raises:
        ConfigError: as `read_authority`.
    """
    path = os.environ.get(VARIABLE, "").strip()
    return read_authority(Path(path).expanduser()) if path else None


def read_authority(path: Path) -> Authority:
    """Read `server.toml` and the roster that it names.

    Raises:
        ConfigError: a file that is missing or can't be read, an unknown or missing key, a name that is none,
            a key that is none, that others can read, or that two silos share.
    """
    table = _table(path)
    _refuse_unknown(table, _SERVER_KEYS + _WATCHER_KEYS, str(path))
    texts = {key: _text(table, key, str(path)) for key in _SERVER_KEYS}
    runs = path.parent / Path(texts["runs"]).expanduser()
    members = _Reading(path.parent / Path(texts["roster"]).expanduser())
    key = load_key(path.parent / Path(texts["signing-key"]).expanduser())
    federation = _name(texts["federation"], f"{path}: federation")
    return Authority(Identity(federation, key, members), runs.absolute())


def read_roster(path: Path) -> dict[str, Member]:
    """The silos of `roster.toml`, by name.

    Raises:
        ConfigError: as `read_authority`.
    """
    table = _table(path)
    _refuse_unknown(table, ("silos",), str(path))
    silos = table.get("silos")
    if not isinstance(silos, dict) or not silos:
        raise ConfigError(f"{path}: has no [silos.<name>]: a server without silos believes nobody")
    members = {
        _name(name, f"{path}: silo"): _member(entry, f"{path}: {name}") for name, entry in silos.items()
    }
    _refuse_shared_keys(members, path)
    return members


class _Reading:
    """The roster as it is now: read again whenever its file was written. Calling it gives the silos."""

    def __init__(self, path: Path) -> None:
        self.path = path
        self.members: Members = read_roster(path)
        self._seen = self._stamp()

    def __call__(self) -> Members:
        """The silos; those of before where the file can't be read just now."""
        stamp = self._stamp()
        if stamp != self._seen:
            self._seen = stamp
            try:
                self.members = read_roster(self.path)
                logger.info("%s was changed, and is read again", self.path)
            except ConfigError as problem:
                logger.error("the roster stays as it was: %s", problem)
        return self.members

    def _stamp(self) -> tuple[int, int, int]:
        try:
            found = self.path.stat()
        except OSError:
            return (0, 0, 0)
        return (found.st_mtime_ns, found.st_size, found.st_ino)


def _member(entry: object, where: str) -> Member:
    if not isinstance(entry, dict):
        raise ConfigError(f"{where}: is {entry!r}, expected a table with the silo's key")
    _refuse_unknown(entry, _MEMBER_KEYS, where)
    most, revoked = entry.get("max-examples", 0), entry.get("revoked", False)
    if type(most) is not int or most < 0:
        raise ConfigError(f"{where}: max-examples = {most!r}: expected a number of rows, or 0 for no cap")
    if type(revoked) is not bool:
        raise ConfigError(f"{where}: revoked = {revoked!r}: expected true or false")
    return Member(_public(_text(entry, "key", where), where), most, revoked)


def _public(text: str, where: str) -> Ed25519PublicKey:
    try:
        return load_public(text)
    except ConfigError as problem:
        raise ConfigError(f"{where}: key: {problem}") from None


def _refuse_shared_keys(members: Mapping[str, Member], path: Path) -> None:
    """Refuse two silos with one key: each could sign as the other."""
    owners: dict[bytes, str] = {}
    for name, member in members.items():
        raw = member.key.public_bytes(serialization.Encoding.Raw, serialization.PublicFormat.Raw)
        if raw in owners:
            raise ConfigError(f"{path}: {owners[raw]} and {name} have the same key; each needs its own")
        owners[raw] = name


def _table(path: Path) -> dict[str, Any]:
    try:
        return tomllib.loads(path.read_text(encoding="utf-8"))
    except OSError as error:
        raise ConfigError(f"{path}: can't be read ({error.strerror})") from None
    except (tomllib.TOMLDecodeError, UnicodeDecodeError) as error:
        raise ConfigError(f"{path}: not valid TOML: {error}") from None


def _refuse_unknown(table: Mapping[str, object], known: tuple[str, ...], where: str) -> None:
    for key in table:
        if key not in known:
            raise ConfigError(f"{where}: unknown key {key!r}; {nearest(key, known)}")


def _text(table: Mapping[str, object], key: str, where: str) -> str:
    value = table.get(key)
    if not isinstance(value, str) or not value:
        raise ConfigError(f"{where}: {key} is {value!r}, expected text")
    return value


def _name(name: str, where: str) -> str:
    if not _NAME.fullmatch(name):
        raise ConfigError(f"{where} {name!r}: expected at most 64 letters, digits and hyphens")
    return name
