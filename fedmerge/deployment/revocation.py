"""`fedmerge deploy revoke`: a silo is out, at the roster, at the proxy and at Flower."""

from __future__ import annotations

import subprocess
from dataclasses import dataclass, replace
from pathlib import Path

from fedmerge.deployment.certificates import revoked_list, serials_of
from fedmerge.deployment.office import REVOKED, ROSTER, Office, open_office
from fedmerge.deployment.roster import roster_text
from fedmerge.deployment.writing import File, replace_files

_SECONDS = 300.0


@dataclass(frozen=True)
class Revoked:
    """What came of it.

    Args:
        files: written anew, relative to the operator's folder.
        unregistered: whether Flower has forgotten the node; None where the server runs from another folder.
        following: what remains to be done, in order.
    """

    files: tuple[str, ...]
    unregistered: bool | None
    following: tuple[str, ...]


def revoke(folder: Path, silo: str) -> Revoked:
    """Take a silo out: its replies are refused, its certificate, and where Flower is reached, its node.

    To be called again does no harm.

    Raises:
        ConfigError: no such silo, or the folder can't be read or written.
    """
    office = open_office(folder)
    member = replace(office.silo(silo), revoked=True)
    serials = serials_of((folder / REVOKED).read_bytes()) | set(office.serials.get(silo, ()))
    files = {
        ROSTER: File(roster_text([*(m for m in office.members.values() if m.name != silo), member]).encode()),
        REVOKED: File(revoked_list(office.authority, serials)),
    }
    replace_files(folder, files, gone=(f"server/nodes/{silo}.pub",))  # register.sh shall not bring it back
    unregistered = _unregister(folder / "server", silo)
    return Revoked(tuple(sorted(files)), unregistered, _steps(office, silo, unregistered))


def _unregister(server: Path, silo: str) -> bool | None:
    """Tell Flower and the proxy, where the server runs from this very folder."""
    if not (server / "nodes" / f"{silo}.id").is_file():
        return None
    done = _run(server / "bin" / "unregister.sh", silo)
    _run(server / "bin" / "proxy.sh", "reload")  # which may run elsewhere, or not at all
    return done


def _run(command: Path, argument: str) -> bool:
    """Whether a command of the server's succeeded."""
    try:
        done = subprocess.run([str(command), argument], capture_output=True, check=False, timeout=_SECONDS)
    except (OSError, subprocess.TimeoutExpired):
        return False
    return done.returncode == 0


def _steps(office: Office, silo: str, unregistered: bool | None) -> tuple[str, ...]:
    copying = office.copying("roster.toml", "crl.pem")
    forget = () if unregistered else (f"server: rm nodes/{silo}.pub, then bin/unregister.sh {silo}",)
    return (*copying, *forget, "server: reload fedmerge-proxy")
