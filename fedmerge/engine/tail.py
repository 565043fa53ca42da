"""Following a run from outside: the lines that it adds to events.jsonl become an observer's events."""

from __future__ import annotations

import json
import os
import time
from pathlib import Path
from typing import Any

from fedmerge.server.observer import Observer

EVENTS = frozenset(("run_started", "phase", "round_started", "reply", "round_closed", "finished"))


class Lines:
    """The whole lines that a growing file gained since they were last read.

    Args:
        path: the file; it need not exist yet.
        replaced: how often another file was found in its place; the lines then begin with that one's first.
    """

    def __init__(self, path: Path) -> None:
        """Begin with the file's first line."""
        self.path = path
        self.replaced = 0
        self._inode, self._offset = 0, 0

    def read(self) -> list[bytes]:
        """The lines added since the last time; one that is still being written waits."""
        try:
            with self.path.open("rb") as file:
                state = os.fstat(file.fileno())
                if state.st_ino != self._inode or state.st_size < self._offset:
                    self.replaced += bool(self._inode)
                    self._inode, self._offset = state.st_ino, 0
                file.seek(self._offset)
                added = file.read()
        except FileNotFoundError:
            return []
        whole = added[: added.rfind(b"\n") + 1]
        self._offset += len(whole)
        return whole.splitlines()


class Tail:
    """Passes on each event once, of those that happened since this was made.

    Args:
        path: events.jsonl of the run's folder; it need not exist yet, and may still be an earlier run's.
        observer: told each event.
    """

    def __init__(self, path: Path, observer: Observer) -> None:
        """Begin now."""
        self._lines, self._observer = Lines(path), observer
        self._since = time.time()

    def read(self) -> bool:
        """Pass on what was added since the last time; whether the run has said that it is finished."""
        ends = [self._tell(json.loads(line)) for line in self._lines.read()]
        return any(ends)

    def _tell(self, event: dict[str, Any]) -> bool:
        name = event.pop("event")
        if event.pop("time") < self._since or name not in EVENTS:
            return False
        getattr(self._observer, name)(**event)
        return bool(name == "finished")
