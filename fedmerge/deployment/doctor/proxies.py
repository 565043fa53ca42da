"""The proxies' configuration: who is let through to what."""

from __future__ import annotations

import re
from collections.abc import Iterator
from pathlib import Path

from fedmerge.deployment.doctor.finding import UNKNOWN, Finding, judged
from fedmerge.deployment.doctor.scripts import behind, listens, passed, served

_ALLOWED = "/v1/fleet/"
_ASKS = re.compile(r"^\s*ssl_verify_client\s+on\s*;", re.MULTILINE)


def of_server(folder: Path) -> Iterator[Finding]:
    """Whether the server's proxy asks for certificates, and passes the Fleet API on and nothing else."""
    text = _text(folder)
    if text is None:
        yield Finding("proxy", UNKNOWN, str(folder / "nginx.conf"), "none lies here")
        return
    blocks = served(text)
    asks = bool(blocks) and all(_ASKS.search(block) for block in blocks)
    told = "asked for" if asks else "not asked for"
    close = "ssl_verify_client on; ssl_client_certificate ca.crt;"
    yield judged("proxy's client certificates", not asks, "nginx.conf", told, close)
    locations = passed(text)
    wide = [name for name in locations if _is_wide(name)]
    told = ", ".join(locations) or "nothing"
    close = f"pass {_ALLOWED} on, and nothing else"
    yield judged("paths that the proxy passes on", bool(wide), "nginx.conf", told, close)


def of_site(folder: Path) -> Iterator[Finding]:
    """Whether the site's proxy, which shows the site's certificate, serves this machine alone."""
    text = _text(folder)
    if text is None:
        yield Finding("proxy", UNKNOWN, str(folder / "nginx.conf"), "none lies here")
        return
    outside = [each for each in listens(text) if not each.startswith(("127.", "[::1]", "localhost", "unix:"))]
    if not listens(text):
        yield Finding("site's proxy from outside", UNKNOWN, "nginx.conf", "it does not say where it listens")
    else:
        told = f"it listens on {', '.join(listens(text))}"
        close = "listen 127.0.0.1:PORT: whoever reaches it shows this site's certificate"
        yield judged("site's proxy from outside", bool(outside), "nginx.conf", told, close)
    checked = bool(re.search(r"^\s*proxy_ssl_verify\s+on\s*;", text, re.MULTILINE))
    told = "checked against the CA" if checked else "not checked: anybody could be the server"
    close = "proxy_ssl_verify on; proxy_ssl_trusted_certificate ca.crt;"
    yield judged("server's certificate at the site's proxy", not checked, "nginx.conf", told, close)


def _is_wide(location: str) -> bool:
    """Whether a location matches more than paths of the Fleet API.

    Example:
        >>> _is_wide("~ ^/v1/fleet/(pull-object|push-object)$"), _is_wide("~ ^/v1/fleet/|^/v1/control/")
        (False, True)
        >>> _is_wide("~ /v1/fleet/"), _is_wide("/v1/fleet/")
        (True, False)
    """
    pattern = location.rsplit(maxsplit=1)[-1]
    is_regex = location.startswith("~")
    if is_regex and not pattern.startswith("^"):
        return True
    beyond = re.sub(r"\([^()]*\)", "", pattern)  # alternatives in parentheses come after the beginning
    return not pattern.lstrip("^").startswith(_ALLOWED) or (is_regex and "|" in beyond)


def own_addresses(folder: Path) -> list[str]:
    """Where the server's proxy can be asked from the server's own machine."""
    ports = [each.rpartition(":")[2] for each in listens(_text(folder) or "")]
    return [f"127.0.0.1:{port}" for port in dict.fromkeys(ports) if port.isdecimal()]


def server_addresses(folder: Path) -> list[str]:
    """Where a site's proxy finds the server."""
    return list(dict.fromkeys(behind(_text(folder) or "")))


def _text(folder: Path) -> str | None:
    path = folder / "nginx.conf"
    return path.read_text(encoding="utf-8") if path.is_file() else None
