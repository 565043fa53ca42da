"""The lines of metrics.jsonl and events.jsonl, when a run goes on that was interrupted.

What the run will do again is taken out, and so is a line that was not written to its end; a closed round
that was not reported any more is.
"""

from __future__ import annotations

import json
import time
from collections.abc import Iterator, Mapping, Sequence
from pathlib import Path
from typing import Any

from fedmerge.server import storage

METRICS = "metrics.jsonl"
EVENTS = "events.jsonl"


def reported(folder: Path) -> dict[int, dict[str, Any]]:
    """The closed rounds in metrics.jsonl, by number; a round that failed is none."""
    lines = _lines(folder / METRICS)
    return {
        line["round"]: line for line in lines if isinstance(line.get("round"), int) and not line.get("failed")
    }


def take_back(folder: Path, reports: Sequence[Mapping[str, Any]], kept: int) -> None:
    """Write both logs anew, as they were when the last of the reported rounds was closed.

    Args:
        folder: of the run.
        reports: of all closed rounds, from 1.
        kept: the last round whose beginning and replies stay in the events: one more than are closed where
            its replies need not be asked for again.
    """
    known = reported(folder)
    lines = [storage.to_json(known.get(report["round"], report)) for report in reports]
    _write(folder / METRICS, lines)
    events = list(_kept(_lines(folder / EVENTS), len(reports), kept))
    told = {event["report"]["round"] for event in events if event["event"] == "round_closed"}
    now = round(time.time(), 3)
    events += [
        {"event": "round_closed", "time": now, "report": report}
        for report in reports
        if report["round"] not in told
    ]
    _write(folder / EVENTS, [storage.to_json(event) for event in events])


def tell_end(folder: Path, result: Mapping[str, Any]) -> None:
    """Add to the events that the run has come to its end, where it was killed before it could say so."""
    events = list(_lines(folder / EVENTS))
    if not any(event.get("event") == "finished" for event in events):
        events.append({"event": "finished", "time": round(time.time(), 3), "result": result})
        _write(folder / EVENTS, [storage.to_json(event) for event in events])


def _kept(events: Iterator[dict[str, Any]], closed: int, kept: int) -> Iterator[dict[str, Any]]:
    """The events that do not come again, each round's closing once."""
    seen: set[int] = set()
    for event in events:
        name = event.get("event")
        if name in ("round_started", "reply") and event.get("round", 0) > kept:
            continue
        if name == "finished" or not isinstance(name, str):
            continue
        if name == "round_closed":
            report = event.get("report") or {}
            if report.get("failed") or not 0 < report.get("round", 0) <= closed or report["round"] in seen:
                continue
            seen.add(report["round"])
        yield event


def _lines(path: Path) -> Iterator[dict[str, Any]]:
    """The whole lines of a log."""
    if not path.is_file():
        return
    with path.open("rb") as file:
        for line in file:
            try:
                value = json.loads(line) if line.endswith(b"\n") else None
            except ValueError:
                continue
            if isinstance(value, dict):
                yield value


def _write(path: Path, lines: Sequence[str]) -> None:
    storage.write_text(path, "".join(f"{line}\n" for line in lines))
