"""Following a run from outside: the lines that it adds to events.jsonl become an observer's events."""

from __future__ import annotations

import json
import os
import time
from pathlib import Path
from typing import Any

from fedmerge.server.observer import Observer

EVENTS = frozenset(("run_started", "phase", "round_started", "reply", "round_closed", "finished"))


class Tail:
    """Passes on each event once, of those that happened since this was made.

    Args:
        path: events.jsonl of the run's folder; it need not exist yet, and may still be an earlier run's.
        observer: told each event.
    """

    def __init__(self, path: Path, observer: Observer) -> None:
        """Begin now."""
        self._path, self._observer = path, observer
        self._since = time.time()
        self._inode, self._offset = 0, 0

    def read(self) -> bool:
        """Pass on what was added since the last time; whether the run has said that it is finished."""
        ends = [self._tell(json.loads(line)) for line in self._added().splitlines()]
        return any(ends)

    def _added(self) -> bytes:
        try:
            with self._path.open("rb") as file:
                state = os.fstat(file.fileno())
                if state.st_ino != self._inode or state.st_size < self._offset:  # another file in its place
                    self._inode, self._offset = state.st_ino, 0
                file.seek(self._offset)
                added = file.read()
        except FileNotFoundError:
            return b""
        whole = added[: added.rfind(b"\n") + 1]  # the last line may still be being written
        self._offset += len(whole)
        return whole

    def _tell(self, event: dict[str, Any]) -> bool:
        name = event.pop("event")
        if event.pop("time") < self._since or name not in EVENTS:
            return False
        getattr(self._observer, name)(**event)
        return bool(name == "finished")
