"""TensorBoard: an event file in `<run>/tensorboard`. `tensorboard --logdir runs` shows all runs.

The file is written and flushed in place. TensorBoard's own writer does that in a thread, which a process that
may fork does better without.
"""

from __future__ import annotations

import os
import socket
import time
import warnings
from collections.abc import Callable, Mapping
from pathlib import Path
from typing import Any

from fedmerge.config import Config
from fedmerge.server.observer import Silent
from fedmerge.server.storage import to_toml
from fedmerge.study.trackers.figures import KEPT, Figures, final_figures, round_figures
from fedmerge.study.trackers.needs import check_installed

FOLDER = "tensorboard"


class TensorBoard(Silent):
    """A tracker that writes TensorBoard's event file.

    The config stands there as hyperparameters and as text, the scores as scalars whose step is the round.

    Args:
        config: of the run.
        folder: of the run.

    Raises:
        ConfigError: tensorboard is not installed.
    """

    def __init__(self, config: Config, folder: Path) -> None:
        """Write nothing yet."""
        check_installed("tensorboard", "tensorboard")
        self._config, self._folder = config, folder
        self._events: EventFile | None = None
        self._good_end: Any = None

    def run_started(self, plan: Mapping[str, Any]) -> None:
        """Begin the file: hyperparameters, config and plan."""
        self._events = EventFile(self._folder / FOLDER)
        experiment, start, self._good_end = _hyperparameters(self._config.flat)
        self._events.summaries(experiment, start)
        self._events.text("config", _as_code(to_toml(self._config.flat)))
        self._events.text("silos", ", ".join(plan["silos"]))

    def round_closed(self, report: Mapping[str, Any]) -> None:
        """Write the round's figures, and who was refused and why."""
        if self._events is not None:
            step = int(report["round"])
            self._events.scalars(round_figures(report), step)
            for refusal in report["refused"]:
                self._events.text(f"refused/{refusal['silo']}", refusal["reason"], step)

    def finished(self, result: Mapping[str, Any]) -> None:
        """Write the final scores, and where the adapter is."""
        if self._events is not None:
            step = len(result["rounds"])
            self._events.scalars(final_figures(result), step)
            self._events.text("adapter", str(result["adapter"]), step)
            self._events.summaries(self._good_end)

    def close(self) -> None:
        """Close the file."""
        if self._events is not None:
            self._events.close()


class EventFile:
    """An event file, on disk as soon as it is written.

    Args:
        folder: where; made where it does not exist.
    """

    def __init__(self, folder: Path) -> None:
        """Begin a file."""
        with warnings.catch_warnings():
            warnings.simplefilter("ignore")  # a third party's own deprecations
            from tensorboard.compat.proto.event_pb2 import Event
            from tensorboard.summary.writer.record_writer import RecordWriter
        self._make: Callable[..., Any] = Event
        folder.mkdir(parents=True, exist_ok=True)
        name = f"events.out.tfevents.{time.time():.0f}.{socket.gethostname()}.{os.getpid()}.0"
        self._records = RecordWriter((folder / name).open("wb"))
        self._write(file_version="brain.Event:2")

    def scalars(self, figures: Figures, step: int) -> None:
        """Write figures of one step."""
        from tensorboard.compat.proto.summary_pb2 import Summary

        values = [Summary.Value(tag=name, simple_value=value) for name, value in figures.items()]
        self._write(step=step, summary=Summary(value=values))

    def text(self, tag: str, text: str, step: int = 0) -> None:
        """Write Markdown."""
        from torch.utils.tensorboard.summary import text as summary

        self._write(step=step, summary=summary(tag, text))  # type: ignore[no-untyped-call]

    def summaries(self, *summaries: Any) -> None:
        """Write summaries as they are."""
        for summary in summaries:
            self._write(summary=summary)

    def close(self) -> None:
        """Close the file."""
        self._records.close()

    def _write(self, **values: Any) -> None:
        self._records.write(self._make(wall_time=time.time(), **values).SerializeToString())
        self._records.flush()


def _hyperparameters(flat: Mapping[str, Any]) -> tuple[Any, Any, Any]:
    """TensorBoard's summaries of an experiment, of a session's start and of its good end."""
    from torch.utils.tensorboard.summary import hparams

    experiment, start, end = hparams(dict(flat), {KEPT: 0.0})  # type: ignore[no-untyped-call]
    return experiment, start, end


def _as_code(text: str) -> str:
    """Text as a block of code in Markdown."""
    return "".join(f"    {line}\n" for line in text.splitlines())
