"""The rounds that a run has closed, read back: each state.json has the hash of the one before it."""

from __future__ import annotations

import json
import re
from collections.abc import Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from torch import Tensor

from fedmerge.errors import CheckpointError
from fedmerge.server import exact, storage

STATE = "state.json"
_SEAL = "seal"
_ROUND = re.compile(r"\d{4,}")


class Damage(CheckpointError):
    """A round that is not what was written.

    Args:
        round: its number.
        sentence: what is wrong with it.
    """

    def __init__(self, round: int, sentence: str) -> None:
        """Name the round."""
        super().__init__(sentence)
        self.round = round


@dataclass(frozen=True)
class Link:
    """A closed round.

    Args:
        round: its number.
        folder: where it lies.
        state: content of its state.json.
        digest: SHA-256 of its state.json.
    """

    round: int
    folder: Path
    state: Mapping[str, Any]
    digest: str

    def tensors(self, name: str) -> dict[str, Tensor]:
        """The tensors of one of its files.

        Raises:
            Damage: the file is not what was written.
        """
        try:
            return storage.read_tensors(self.folder / name, str(self.state["sha256"].get(name, "")))[0]
        except CheckpointError as err:
            raise Damage(self.round, str(err)) from None


def read_chain(rounds: Path, closed: int = -1) -> tuple[list[Link], Damage | None]:
    """The rounds from 0 on, as far as each has the hash of the one before.

    Args:
        rounds: the folder that they lie in.
        closed: the last round that is known to have been closed; -1: none is.

    Returns:
        The rounds, and what is wrong with the next one; None where there is no next one.
    """
    last = max([closed, *(_numbered(rounds, STATE))])
    links: list[Link] = []
    for number in range(last + 1):
        try:
            links.append(_link(rounds / f"{number:04d}", number, links[-1].digest if links else ""))
        except CheckpointError as err:
            return links, Damage(number, str(err))
    return links, None


def numbers(rounds: Path) -> list[int]:
    """The rounds that have a folder, sorted."""
    return _numbered(rounds, "")


def sealed(values: Mapping[str, Any]) -> bytes:
    """A file of JSON with a hash of all that it says: the last of a chain has nothing after it to tell."""
    plain = exact.encoded(values)
    return storage.json_bytes({**plain, _SEAL: storage.sha256_of(storage.json_bytes(plain))})


def read_object(path: Path) -> tuple[dict[str, Any], str]:
    """What `sealed` was given, and the SHA-256 of the file.

    Raises:
        CheckpointError: the file is not there, can't be read, or is not what was written.
    """
    try:
        data = path.read_bytes()
        value = json.loads(data)
    except OSError as err:
        raise CheckpointError(f"{path} can't be read ({err.strerror})") from None
    except ValueError as err:
        raise CheckpointError(f"{path} is damaged: not JSON ({err})") from None
    seal = value.pop(_SEAL, None) if isinstance(value, dict) else None
    if seal is None or seal != storage.sha256_of(storage.json_bytes(value)):
        raise CheckpointError(f"{path} is damaged: it is not what was written, or an older fedmerge wrote it")
    return exact.decoded(value), storage.sha256_of(data)


def _link(folder: Path, number: int, previous: str) -> Link:
    state, digest = read_object(folder / STATE)
    if state.get("round") != number or not isinstance(state.get("sha256"), Mapping):
        raise CheckpointError(f"{folder / STATE} is damaged: it is no state of round {number}")
    if state.get("previous") != previous:
        raise CheckpointError(f"{folder / STATE} does not follow on the state of round {number - 1}")
    return Link(number, folder, state, digest)


def _numbered(rounds: Path, holding: str) -> list[int]:
    found = rounds.iterdir() if rounds.is_dir() else ()
    return sorted(
        int(path.name) for path in found if _ROUND.fullmatch(path.name) and (path / holding).exists()
    )
