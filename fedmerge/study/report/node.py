"""Values of a file, read without belief: a wrong one is a sentence that names the file."""

from __future__ import annotations

import json
import math
import tomllib
from collections.abc import Callable
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from fedmerge.errors import CheckpointError
from fedmerge.study.report.printable import printable

LARGEST_FILE = 1 << 28


@dataclass(frozen=True)
class Node:
    """A value and where it stands.

    Args:
        value: as JSON or TOML gave it.
        file: that it was read from.
        place: in the file, "candidates.base.mean"; "" for all of it.

    Example:
        >>> Node({"mean": "high"}, Path("result.json")).at("mean").number()
        Traceback (most recent call last):
        fedmerge.errors.CheckpointError: result.json: mean is 'high', expected a number
    """

    value: Any
    file: Path
    place: str = ""

    def at(self, key: str) -> Node:
        """The value of a key that must be there."""
        found = self.items().get(key)
        if found is None:
            raise CheckpointError(f"{self.file}: {self._where()} has no {key!r}")
        return found

    def find(self, key: str) -> Node | None:
        """The value of a key; None where it is absent or null."""
        found = self.items().get(key)
        return None if found is None or found.value is None else found

    def items(self) -> dict[str, Node]:
        """The values of an object, by key."""
        if not isinstance(self.value, dict):
            raise self._wrong("an object")
        head = f"{self.place}." if self.place else ""
        return {
            printable(str(key)): Node(value, self.file, head + printable(str(key)))
            for key, value in self.value.items()
        }

    def entries(self) -> list[Node]:
        """The values of a list."""
        if not isinstance(self.value, list):
            raise self._wrong("a list")
        return [Node(value, self.file, f"{self.place}[{n}]") for n, value in enumerate(self.value)]

    def text(self) -> str:
        """A text."""
        if not isinstance(self.value, str):
            raise self._wrong("a text")
        return printable(self.value)

    def flag(self) -> bool:
        """True or false."""
        if not isinstance(self.value, bool):
            raise self._wrong("true or false")
        return self.value

    def number(self) -> float:
        """A finite number."""
        found = self.figure()
        if found is None:
            raise self._wrong("a number")
        return found

    def figure(self) -> float | None:
        """A finite number; None for null, which is what NaN is written as."""
        if self.value is None:
            return None
        if isinstance(self.value, bool) or not isinstance(self.value, int | float):
            raise self._wrong("a number")
        return float(self.value) if math.isfinite(self.value) else None

    def texts(self) -> tuple[str, ...]:
        """A list of texts."""
        return tuple(entry.text() for entry in self.entries())

    def figures(self) -> tuple[float | None, ...]:
        """A list of numbers or null."""
        return tuple(entry.figure() for entry in self.entries())

    def by_name(self) -> dict[str, float | None]:
        """An object of numbers or null."""
        return {key: value.figure() for key, value in self.items().items()}

    def _where(self) -> str:
        return self.place or "the file"

    def _wrong(self, expected: str) -> CheckpointError:
        shown = repr(self.value)
        shown = shown if len(shown) <= 60 else shown[:57] + "..."
        return CheckpointError(f"{self.file}: {self._where()} is {shown}, expected {expected}")


def read_json(path: Path) -> Node:
    """A file of JSON.

    Raises:
        CheckpointError: it can't be read, or is no JSON.
    """
    return _read(path, json.loads, "JSON")


def read_toml(path: Path) -> Node:
    """A file of TOML.

    Raises:
        CheckpointError: it can't be read, or is no TOML.
    """
    return _read(path, tomllib.loads, "TOML")


def read_lines(path: Path) -> list[Node]:
    """A file of JSON lines. The last one is left out where it is broken off: a run may have been stopped
    while it wrote.

    Raises:
        CheckpointError: it can't be read, or an earlier line is no JSON.
    """
    texts = [line for line in _text(path).split("\n") if line.strip()]
    nodes = []
    for number, text in enumerate(texts, start=1):
        try:
            nodes.append(Node(json.loads(text), path, f"line {number}"))
        except (ValueError, RecursionError) as error:
            if number == len(texts) and nodes:
                break
            raise CheckpointError(f"{path}: line {number} is no JSON: {error}") from None
    return nodes


def _read(path: Path, load: Callable[[str], Any], kind: str) -> Node:
    try:
        return Node(load(_text(path)), path)
    except (ValueError, RecursionError) as error:
        raise CheckpointError(f"{path} is no {kind}: {error}") from None


def _text(path: Path) -> str:
    try:
        if path.stat().st_size > LARGEST_FILE:
            raise CheckpointError(f"{path}: {path.stat().st_size} bytes, expected at most {LARGEST_FILE}")
        return path.read_text(encoding="utf-8")
    except OSError as error:
        raise CheckpointError(f"{path} can't be read: {error.strerror}") from None
    except UnicodeDecodeError as error:
        raise CheckpointError(f"{path} is no text in UTF-8: {error}") from None
