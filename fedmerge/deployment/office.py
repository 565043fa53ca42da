"""The operator's folder, as `deploy init` wrote it: read again when keys change."""

from __future__ import annotations

import tomllib
from collections.abc import Iterable, Mapping
from dataclasses import dataclass
from pathlib import Path

import tomli_w

from fedmerge.deployment.certificates import Authority, Pair, check_pair, read_authority
from fedmerge.deployment.federation import Federation, read_federation
from fedmerge.deployment.roster import Member, read_members
from fedmerge.deployment.writing import SECRET, File
from fedmerge.errors import ConfigError, nearest

ROSTER = "server/roster.toml"
REVOKED = "server/crl.pem"
SERIALS = "ca/serials.toml"
"""Which client certificates each silo was given: what `revoke` names, also when the silo's folder is gone."""


@dataclass(frozen=True)
class Office:
    """What the operator holds.

    Args:
        folder: written by `deploy init`.
        federation: that it was made from.
        authority: its certificate authority.
        members: the roster, by silo.
        serials: of the client certificates of each silo.
    """

    folder: Path
    federation: Federation
    authority: Authority
    members: Mapping[str, Member]
    serials: Mapping[str, tuple[int, ...]]

    def copying(self, *names: str) -> tuple[str, ...]:
        """The step that takes files of the server's to it; none where the server runs from this folder."""
        here, there = self.folder / "server", Path(self.federation.server.folder)
        return () if here == there else (f"server: copy {', '.join(names)} from {here} to {there}",)

    def silo(self, name: str) -> Member:
        """A silo of the roster.

        Raises:
            ConfigError: there is none of that name.
        """
        if name not in self.members:
            raise ConfigError(f"{self.folder}: no silo {name!r}; {nearest(name, self.members)}")
        return self.members[name]


def open_office(folder: Path) -> Office:
    """Read the operator's folder.

    Raises:
        ConfigError: a file is missing or damaged, or the authority's certificate does not match its key.
    """
    made = read_federation(folder / "federation.toml")
    authority = read_authority(read_pair(folder / "ca", "ca.crt", "ca.key"), str(folder / "ca"))
    return Office(folder, made, authority, read_members(folder / ROSTER), _serials(folder / SERIALS))


def read_pair(folder: Path, certificate: str, key: str) -> Pair:
    """A certificate and its key from their files.

    Raises:
        ConfigError: one can't be read.
    """
    try:
        return Pair((folder / certificate).read_bytes(), (folder / key).read_bytes())
    except OSError as error:
        raise ConfigError(f"{error.filename}: can't be read ({error.strerror})") from None


def check_pairs(folder: Path, names: Iterable[str]) -> None:
    """Refuse a party's folder in which a certificate that is there does not match the key beside it.

    Raises:
        ConfigError: one does not; nobody can say then which of the two is the right one.
    """
    for name in names:
        if (folder / f"{name}.pem").is_file() and (folder / f"{name}.key").is_file():
            check_pair(read_pair(folder, f"{name}.pem", f"{name}.key"), f"{folder}/{name}.pem and {name}.key")


def serials_file(serials: Mapping[str, Iterable[int]]) -> File:
    """The file of client certificates by silo."""
    table = {silo: [f"{serial:x}" for serial in numbers] for silo, numbers in sorted(serials.items())}
    return File(tomli_w.dumps(table).encode(), SECRET)


def _serials(path: Path) -> dict[str, tuple[int, ...]]:
    try:
        table = tomllib.loads(path.read_text(encoding="utf-8"))
        return {silo: tuple(int(serial, 16) for serial in serials) for silo, serials in table.items()}
    except OSError as error:
        raise ConfigError(f"{path}: can't be read ({error.strerror})") from None
    except (tomllib.TOMLDecodeError, ValueError, TypeError) as error:
        raise ConfigError(f"{path}: no list of certificates: {error}") from None
