"""Who may read what lies on disk: keys and secrets, Flower's database, the rows and logs of a site."""

from __future__ import annotations

import stat
from collections.abc import Iterator
from pathlib import Path

from fedmerge.deployment.doctor.finding import NOTE, UNKNOWN, Finding, judged

SECRETS = ("*.key", "*.secret", "*-key.pem")
_BESIDE_A_DATABASE = ("", "-wal", "-shm", "-journal")
_OTHERS, _GROUP_AND_OTHERS = 0o007, 0o077


def secrets(folder: Path) -> Iterator[Finding]:
    """Keys and secrets of a party's folder; nobody but their owner may read or change them."""
    for path in sorted({path for pattern in SECRETS for path in folder.rglob(pattern)}):
        mode = _mode(path)
        told = f"{mode:04o}, {_who(mode)}"
        close = f"chmod 600 {path.name}, then fedmerge deploy rotate: it may have been read"
        yield judged(
            f"secret {path.name}", bool(mode & _GROUP_AND_OTHERS), f"the mode of {path}", told, close
        )


def database(path: Path) -> Iterator[Finding]:
    """Flower's database and what SQLite writes beside it; Flower creates them for everybody to read.

    It holds every message of every run. A file counts as closed when the folder it lies in is.
    """
    if not path.exists():
        yield Finding("database", UNKNOWN, str(path), "no such file")
    for suffix in _BESIDE_A_DATABASE:
        if (beside := Path(f"{path}{suffix}")).exists():
            yield private(
                beside, f"database {beside.name}", "UMask=0077 in the unit; chmod 700 on its folder"
            )


def private(path: Path, door: str, close: str) -> Finding:
    """Whether a file or folder, or the folder it lies in, is closed to other users of the machine."""
    asked = f"the modes of {path} and of its folder"
    try:
        own, above = _mode(path), _mode(path.parent)
    except OSError as error:
        return Finding(door, UNKNOWN, asked, error.strerror or str(error))
    told = f"{own:04o} in a folder of {above:04o}"
    return judged(door, bool(own & _OTHERS and above & _OTHERS), asked, told, close)


def owners(folder: Path) -> Iterator[Finding]:
    """Whose the secrets are: what root owns, a service that is not root can't read."""
    found = {path.owner() for pattern in SECRETS for path in folder.rglob(pattern)}
    if len(found) > 1:
        yield Finding("owners of secrets", NOTE, str(folder), f"owned by {', '.join(sorted(found))}")


def _mode(path: Path) -> int:
    return stat.S_IMODE(path.stat().st_mode)


def _who(mode: int) -> str:
    if mode & _OTHERS:
        return "open to every user of this machine"
    return "open to its group" if mode & _GROUP_AND_OTHERS else "its owner's alone"
