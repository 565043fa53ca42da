"""What the scripts and the proxy's configuration of a party's folder say: flags, ports, addresses."""

from __future__ import annotations

import re
from dataclasses import dataclass
from pathlib import Path

from fedmerge.deployment.doctor.units import flags

_SET = re.compile(r"^(\w+)=(\S*)$", re.MULTILINE)
_LISTEN = re.compile(r"^\s*listen\s+(\S+?)\s*(?:ssl)?\s*;", re.MULTILINE)
_PASSED = re.compile(r"^\s*proxy_pass\s+https?://([^/;\s]+)", re.MULTILINE)


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
        >>> listens("  listen 127.0.0.1:8444;\n  listen 8443 ssl;")
        ['127.0.0.1:8444', '8443']
    """
    return _LISTEN.findall(nginx)


def passes_to(nginx: str) -> list[str]:
    """Where a proxy passes requests on to: host:port.

    Example:
        >>> passes_to("proxy_pass https://fed.example.org:8443;")
        ['fed.example.org:8443']
    """
    return _PASSED.findall(nginx)
