"""A line of JSON for each change, and none while nothing changes."""

from __future__ import annotations

import json
from collections.abc import Callable
from datetime import UTC, datetime


class Journal:
    """Says what happens, each state once.

    Args:
        write: takes a line, without its end.
        run: name of what is watched, which stands in every line.
    """

    def __init__(self, write: Callable[[str], None], run: str = "") -> None:
        """Begin with nothing said."""
        self._write, self._run = write, run
        self._said: dict[str, tuple[str, str]] = {}

    def say(self, event: str, sentence: str, **facts: str | int | float) -> None:
        """Write one line."""
        when = datetime.now(UTC).isoformat(timespec="milliseconds")
        line = {"time": when, "event": event, "run": self._run, "sentence": sentence} | facts
        self._write(json.dumps(line, ensure_ascii=False))

    def change(self, subject: str, event: str, sentence: str, **facts: str | int | float) -> None:
        """Write one line, unless the last one of the same subject said the same."""
        if self._said.get(subject) != (event, sentence):
            self._said[subject] = (event, sentence)
            self.say(event, sentence, **facts)
