"""What the scripts and the proxy's configuration of a party's folder say: flags, ports, addresses."""

from __future__ import annotations

import re
from dataclasses import dataclass
from pathlib import Path

from fedmerge.deployment.doctor.units import flags

_SET = re.compile(r"^(\w+)=(\S*)$", re.MULTILINE)
_LISTEN = re.compile(r"^\s*listen\s+([^\s;]+)[^;]*;", re.MULTILINE)
_BEHIND = re.compile(r"^\s*server\s+([^\s;{]+:\d+)\s*;", re.MULTILINE)
_SERVER = re.compile(r"^\s*server\s*\{", re.MULTILINE)
_LOCATION = re.compile(r"^\s*location\s+([^{]+?)\s*\{", re.MULTILINE)


@dataclass(frozen=True)
class Scripts:
    """A party's folder as its scripts use it.

    Args:
        folder: where it lies.
        state: where what it writes lies; None where no script says.
    """

    folder: Path
    state: Path | None

    def flags(self, name: str) -> dict[str, str]:
        """The flags of a script in `bin/`, its variables filled in; none where there is no such script."""
        path = self.folder / "bin" / name
        if not path.is_file():
            return {}
        return {flag: self._filled(value) for flag, value in flags(path).items()}

    def _filled(self, value: str) -> str:
        return value.replace("$HERE", str(self.folder)).replace("$STATE", str(self.state or "$STATE"))


def read(folder: Path) -> Scripts:
    """Read a party's folder."""
    place = folder / "bin" / "place.sh"
    text = place.read_text(encoding="utf-8") if place.is_file() else ""
    state = dict(_SET.findall(text)).get("STATE", "")
    return Scripts(folder, Path(state) if state.startswith("/") else None)


def listens(nginx: str) -> list[str]:
    r"""Where a proxy listens, as its configuration says it.

    Example:
        >>> listens("  listen 127.0.0.1:8444;\n  listen 8443 ssl reuseport;")
        ['127.0.0.1:8444', '8443']
    """
    return _LISTEN.findall(nginx)


def behind(nginx: str) -> list[str]:
    r"""Who stands behind a proxy, of its `upstream` blocks: host:port.

    Example:
        >>> behind("upstream federation { \n server fed.example.org:8443;\n }")
        ['fed.example.org:8443']
    """
    return _BEHIND.findall(nginx)


def served(nginx: str) -> list[str]:
    r"""The texts of a proxy's `server` blocks.

    Example:
        >>> served("server {\n listen 1;\n }\nserver { listen 2; }")
        ['\n listen 1;\n ', ' listen 2; ']
    """
    return [_block(nginx[match.end() :]) for match in _SERVER.finditer(nginx)]


def passed(nginx: str) -> list[str]:
    r"""The locations whose requests a proxy passes on, as its configuration writes them.

    Example:
        >>> passed("location /a { limit_except POST { deny all; } proxy_pass https://b; }\n location / { }")
        ['/a']
    """
    found = [(match.group(1), _block(nginx[match.end() :])) for match in _LOCATION.finditer(nginx)]
    return [name for name, block in found if "proxy_pass" in block]


def _block(text: str) -> str:
    """The text up to the brace that closes it; braces within come in pairs."""
    depth = 1
    for position, character in enumerate(text):
        depth += (character == "{") - (character == "}")
        if depth == 0:
            return text[:position]
    return text
