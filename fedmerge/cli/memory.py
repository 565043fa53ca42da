"""How much memory a command may take."""

from __future__ import annotations

import contextlib
import re
from pathlib import Path

from fedmerge.errors import ConfigError

UNITS = {
    "": 1,
    "k": 10**3,
    "m": 10**6,
    "g": 10**9,
    "t": 10**12,
    "ki": 2**10,
    "mi": 2**20,
    "gi": 2**30,
    "ti": 2**40,
}

RESERVE = 48 << 20
"""Bytes that libraries take when arithmetic begins."""


def parse_memory(text: str) -> int:
    """Bytes from text; without text, half of what is free.

    Raises:
        ConfigError: no such size.

    Example:
        >>> parse_memory("2GB"), parse_memory("1.5 GiB"), parse_memory("300m")
        (2000000000, 1610612736, 300000000)
    """
    if not text.strip():
        return free() // 2
    match = re.fullmatch(r"\s*(\d+(?:\.\d+)?)\s*([kmgt]?i?)b?\s*", text.lower())
    if match is None or match[2] not in UNITS or not float(match[1]):
        raise ConfigError(f"--memory {text!r}: expected a size above 0, such as '2GB' or '512MiB'")
    return int(float(match[1]) * UNITS[match[2]])


def free() -> int:
    """Bytes that this process could still take: of the machine, or of its container where that is less."""
    import psutil  # type: ignore[import-untyped]

    found = int(psutil.virtual_memory().available)
    with contextlib.suppress(OSError, ValueError):
        group = Path("/sys/fs/cgroup")
        limit = int((group / "memory.max").read_text())
        found = min(found, max(0, limit - int((group / "memory.current").read_text())))
    return found


def working(text: str) -> tuple[int, int]:
    """Bytes that the whole process may take, and those that are left to work in.

    Raises:
        ConfigError: no such size, or less than the program itself takes.
    """
    import psutil

    total = parse_memory(text)
    taken = int(psutil.Process().memory_info().rss) + RESERVE
    if total <= taken:
        raise ConfigError(
            f"--memory {text.strip() or total}: the program itself takes {taken / 1e6:.0f} MB, "
            "nothing is left to work in"
        )
    return total, total - taken
