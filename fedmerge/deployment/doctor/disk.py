"""Room on the disks where rounds, messages and logs are written."""

from __future__ import annotations

import shutil
from collections.abc import Iterator
from pathlib import Path

from fedmerge.deployment.doctor.finding import NOTE, Finding, judged

LITTLE_BYTES = 2 << 30
LITTLE_SHARE = 0.05
LARGE_DATABASE = 4 << 30


def room(path: Path, door: str) -> Finding:
    """Whether the disk of a folder is about to fill."""
    there = next(each for each in (path, *path.absolute().parents) if each.exists())
    usage = shutil.disk_usage(there)
    wrong = usage.free < LITTLE_BYTES or usage.free < LITTLE_SHARE * usage.total
    told = f"{usage.free / 2**30:.1f} of {usage.total / 2**30:.1f} GiB are free"
    close = "make room: a full disk ends the run, with the last good adapter intact"
    return judged(f"disk of {door}", wrong, str(there), told, close)


def database_size(path: Path) -> Iterator[Finding]:
    """How large Flower's database has grown; it never shrinks by itself."""
    files = [each for each in (path, Path(f"{path}-wal")) if each.exists()]
    size = sum(each.stat().st_size for each in files)
    if files:
        told = f"{size / 2**20:.1f} MiB; it never shrinks by itself"
        close = "between runs: stop the SuperLink, set the file aside, register the nodes again"
        yield Finding("size of the database", NOTE, str(path), told, close if size > LARGE_DATABASE else "")
