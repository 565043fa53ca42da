"""systemd units and start scripts: where it matters, as `fedmerge deploy init` writes them?"""

from __future__ import annotations

import re
import shlex
from collections.abc import Iterator
from dataclasses import dataclass
from itertools import pairwise
from pathlib import Path

from fedmerge.deployment.doctor.finding import CLOSED, OPEN, UNKNOWN, Finding, judged

RESTART_SECONDS = 60.0
"""Flower refuses a SuperNode that comes back sooner than about a minute: its old self is still registered."""

_UNIT_SECONDS = {"": 1.0, "s": 1.0, "sec": 1.0, "min": 60.0, "m": 60.0, "ms": 0.001, "h": 3600.0}


@dataclass(frozen=True)
class Unit:
    """A systemd unit.

    Args:
        path: its file.
        settings: its settings by name, of all sections; a setting that is repeated has all its values.
    """

    path: Path
    settings: dict[str, list[str]]

    def last(self, name: str, default: str = "") -> str:
        """The value of a setting that counts: the last one."""
        return self.settings.get(name, [default])[-1]


def read(path: Path) -> Unit:
    """Read a unit; continued lines are joined, comments left out."""
    settings: dict[str, list[str]] = {}
    text = re.sub(r"\\\n", " ", path.read_text(encoding="utf-8"))
    for line in text.splitlines():
        name, equals, value = line.strip().partition("=")
        if equals and not name.startswith(("#", ";")):
            settings.setdefault(name.strip(), []).append(value.strip())
    return Unit(path, settings)


def of_folder(folder: Path) -> Iterator[Finding]:
    """All that can be said about the units of a party's folder."""
    paths = sorted((folder / "systemd").glob("*.service"))
    if not paths:
        yield Finding("units", UNKNOWN, str(folder / "systemd"), "no unit lies here")
    for unit in map(read, paths):
        yield user(unit)
        yield killed_whole(unit)
        yield from restarts(unit)


def user(unit: Unit) -> Finding:
    """Whether a unit runs as somebody who is not root."""
    who = unit.last("DynamicUser") == "yes" or unit.last("User") not in ("", "root", "0")
    told = f"User={unit.last('User') or '(root)'}"
    return judged(
        f"user of {unit.path.name}", not who, "User=", told, "User=fedmerge, a user without a login"
    )


def killed_whole(unit: Unit) -> Finding:
    """Whether stopping a unit ends its children too: an orphaned ClientApp would go on training."""
    mode = unit.last("KillMode", "control-group")
    told, close = f"KillMode={mode}", "KillMode=control-group"
    return judged(f"children of {unit.path.name}", mode != "control-group", "KillMode=", told, close)


def restarts(unit: Unit) -> Iterator[Finding]:
    """Whether a unit comes back by itself, and a SuperNode late enough."""
    door, again = f"restart of {unit.path.name}", unit.last("Restart", "no")
    if again not in ("always", "on-failure") and unit.last("Type") != "oneshot":
        yield Finding(door, OPEN, "Restart=", f"Restart={again}: it stays down", "Restart=always")
        return
    if "supernode" in f"{unit.path.name} {unit.last('ExecStart')}":
        given = unit.last("RestartSec", "100ms")
        wrong = seconds(given) <= RESTART_SECONDS
        told = f"RestartSec={given}" + (": Flower refuses a node that is back so soon" if wrong else "")
        yield judged(door, wrong, "RestartSec=", told, "RestartSec=75")
    else:
        yield Finding(door, CLOSED, "Restart=", f"Restart={again}")


def seconds(span: str) -> float:
    """A time span of systemd in seconds.

    Example:
        >>> seconds("1min 15s"), seconds("75"), seconds("100ms")
        (75.0, 75.0, 0.1)
    """
    parts = re.findall(r"(\d+(?:\.\d+)?)\s*([a-z]*)", span)
    return sum(float(number) * _UNIT_SECONDS.get(unit, 0.0) for number, unit in parts)


def flags(path: Path) -> dict[str, str]:
    """The `--flags` of a start script or of a command line, by name; a flag without a value has "".

    Example:
        >>> flags_of(["flower-superlink", "--port", "8000", "--insecure"])
        {'--port': '8000', '--insecure': ''}
    """
    text = re.sub(r"\\\n", " ", path.read_text(encoding="utf-8"))
    words: list[str] = []
    for line in text.splitlines():
        if not line.lstrip().startswith("#"):
            words += shlex.split(line, posix=True)
    return flags_of(words)


def flags_of(words: list[str]) -> dict[str, str]:
    """The flags among the words of a command line."""
    found: dict[str, str] = {}
    for word, following in pairwise([*words, "--"]):
        if word.startswith("--"):
            name, equals, value = word.partition("=")
            found[name] = value if equals else "" if following.startswith("--") else following
    return found
