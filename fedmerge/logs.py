"""What the processes of a deployment say: one line an event, with time (UTC), level, party, run and round.

Plain text, or with ``FEDMERGE_LOG=json`` a JSON object a line. Flower's own logger and its handlers are left
as they are; this is about the logger "fedmerge" in the processes of a ClientApp and a ServerApp.
"""

from __future__ import annotations

import json
import logging
import os
import sys
from dataclasses import dataclass, replace
from datetime import UTC, datetime
from typing import TextIO

FORMAT = "FEDMERGE_LOG"
"""The environment variable that chooses the form: "json", or plain text."""


@dataclass(frozen=True)
class Scene:
    """Where an event happens.

    Args:
        party: "server", or "silo" and its name.
        run: its id; "" before it is known.
        round: from 1; 0 outside of rounds.
    """

    party: str = ""
    run: str = ""
    round: int = 0


class Events(logging.StreamHandler[TextIO]):
    """Writes events to stderr, as it is when they happen: Flower puts another one in its place."""

    def __init__(self) -> None:
        """Take the form from the environment."""
        super().__init__()
        self.scene = Scene()
        self.setFormatter(_Form(self, as_json=os.environ.get(FORMAT, "").strip().lower() == "json"))

    def emit(self, record: logging.LogRecord) -> None:
        """Write one line."""
        self.stream = sys.stderr
        super().emit(record)


def configure(party: str, run: str = "") -> None:
    """Let the events of this process be written; once is enough, a second call only renames the scene.

    Where a program of one's own has handlers already, they are left alone and nothing is added.

    Args:
        party: who speaks.
        run: the run's id, if known.
    """
    ours = logging.getLogger("fedmerge")
    if not ours.hasHandlers():
        ours.addHandler(Events())
        ours.setLevel(logging.INFO)
    _set(Scene(party, run))


def note(*, run: str | None = None, round: int | None = None) -> None:
    """Say which run and round the next events belong to; nothing where `configure` was not called."""
    for handler in _handlers():
        scene = handler.scene
        scene = scene if run is None else replace(scene, run=run)
        handler.scene = scene if round is None else replace(scene, round=round)


def line(record: logging.LogRecord, scene: Scene, *, as_json: bool, traceback: str = "") -> str:
    """One event as one line.

    Args:
        record: of the event; an attribute `round` (``extra={"round": 3}``) goes before the scene's.
        scene: where it happens.
        as_json: an object, or plain text.
        traceback: of an exception.

    Example:
        >>> record = logging.makeLogRecord({"msg": "closed", "levelname": "INFO", "created": 0.0})
        >>> line(record, Scene("server", "a1b2", 3), as_json=False)
        '1970-01-01T00:00:00.000Z INFO server run=a1b2 round=3 closed'
    """
    moment = datetime.fromtimestamp(record.created, UTC).isoformat(timespec="milliseconds")
    time, message = moment.replace("+00:00", "Z"), record.getMessage()
    round = record.__dict__.get("round", scene.round)
    if as_json:
        event = {"time": time, "level": record.levelname, "party": scene.party, "run": scene.run}
        event |= {"round": round, "logger": record.name, "message": message}
        return json.dumps(event | ({"traceback": traceback} if traceback else {}))
    place = [scene.party or record.name, f"run={scene.run}" * bool(scene.run), f"round={round}" * bool(round)]
    words = " ".join([time, record.levelname, *filter(None, place), " ".join(message.splitlines())])
    return f"{words}\n{traceback}" if traceback else words


class _Form(logging.Formatter):
    def __init__(self, events: Events, *, as_json: bool) -> None:
        super().__init__()
        self._events, self._as_json = events, as_json

    def format(self, record: logging.LogRecord) -> str:
        traceback = self.formatException(record.exc_info) if record.exc_info else ""
        return line(record, self._events.scene, as_json=self._as_json, traceback=traceback)


def _set(scene: Scene) -> None:
    for handler in _handlers():
        handler.scene = scene


def _handlers() -> list[Events]:
    return [handler for handler in logging.getLogger("fedmerge").handlers if isinstance(handler, Events)]
