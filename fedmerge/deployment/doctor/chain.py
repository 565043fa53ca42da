"""Whether the rounds of a run are what was written: files as hashed, rounds in a chain."""

from __future__ import annotations

import hashlib
import json
from collections.abc import Iterator
from pathlib import Path

from fedmerge.deployment.doctor.finding import UNKNOWN, Finding, judged

_REMOVED = ("deltas/", "statistics/")
"""Admitted replies may be deleted when their round is closed."""


def whole(run: Path) -> Finding:
    """Verify a run's rounds by the hashes in their state.json."""
    states = sorted(run.glob("rounds/*/state.json"))
    asked = f"the hashes of {run.name}/rounds"
    if not states:
        return Finding("rounds on disk", UNKNOWN, asked, "no round yet")
    wrong = list(_wrong(states))
    told = "; ".join(wrong[:3]) or f"{len(states)} rounds, each as it was written"
    close = "something changed them after they were written; a resumed run uses the last whole one"
    return judged("rounds on disk", bool(wrong), asked, told, close)


def _wrong(states: list[Path]) -> Iterator[str]:
    before = ""
    for path in states:
        data = path.read_bytes()
        try:
            record = json.loads(data)
            previous, hashes = record.get("previous", ""), dict(record.get("sha256", {}))
        except (ValueError, AttributeError, TypeError):
            yield f"{path.parent.name}/state.json is damaged"
            before = ""
            continue
        if before and previous and previous != before:
            yield f"{path.parent.name} does not follow the round before it"
        before = hashlib.sha256(data).hexdigest()
        yield from _changed(path.parent, hashes)


def _changed(folder: Path, hashes: dict[str, str]) -> Iterator[str]:
    for name, expected in sorted(hashes.items()):
        path = folder / name
        if not path.is_file():
            if not name.startswith(_REMOVED):
                yield f"{folder.name}/{name} is missing"
        elif hashlib.sha256(path.read_bytes()).hexdigest() != expected:
            yield f"{folder.name}/{name} was changed"
