"""`roster.toml`: the silos that the server knows, and whether each is still in."""

from __future__ import annotations

import tomllib
from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path

from fedmerge.deployment.templates import render
from fedmerge.errors import ConfigError


@dataclass(frozen=True)
class Member:
    """A silo of the roster.

    Args:
        name: of the silo.
        key: its public Ed25519 key, as base64.
        max_examples: cap of its weight in rows; 0 = none.
        revoked: whether its replies are refused.
    """

    name: str
    key: str
    max_examples: int = 0
    revoked: bool = False


def roster_text(members: Sequence[Member]) -> str:
    """The file's text."""
    return render("server/roster.toml", {"roster": sorted(members, key=lambda member: member.name)})


def read_members(path: Path) -> dict[str, Member]:
    """The silos of a roster, by name.

    Raises:
        ConfigError: no such file, or no roster.
    """
    try:
        table = tomllib.loads(path.read_text(encoding="utf-8"))
        return {
            name: Member(
                name,
                str(entry["key"]),
                int(entry.get("max-examples", 0)),
                bool(entry.get("revoked", False)),
            )
            for name, entry in table["silos"].items()
        }
    except OSError as error:
        raise ConfigError(f"{path}: can't be read ({error.strerror})") from None
    except (tomllib.TOMLDecodeError, UnicodeDecodeError, KeyError, TypeError, AttributeError) as error:
        raise ConfigError(f"{path}: no roster: {error}") from None
