"""What silos have answered before, on disk: training and scores that need not be computed again.

A silo's answer depends on the message, on its rows, the base and the settings alone (`fedmerge.silo.worker`).
So answers are kept under a hash of all of these, and a study that is interrupted, or asked again with one
more strategy, computes only what is new. An entry that can't be read, or whose hash differs, counts as
absent: it is computed again.
"""

from __future__ import annotations

import json
import logging
import math
from collections.abc import Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import IO, Any

import safetensors.torch
from torch import Tensor

from fedmerge.server import storage

logger = logging.getLogger(__name__)

_SCORES = "scores.jsonl"
_SEPARATOR = ":"  # between a record's name and a tensor's, in the files; neither has one


@dataclass(frozen=True)
class Answer:
    """A silo's answer to a train message.

    Args:
        records: tensors by record, "arrays" or "statistics/fisher".
        metrics: its numbers.
        sender: who answered.
    """

    records: Mapping[str, Mapping[str, Tensor]]
    metrics: Mapping[str, Any]
    sender: Mapping[str, Any]


class Memo:
    """Answers by key, in a folder; one writer at a time.

    Args:
        folder: made where it does not exist.

    Raises:
        CheckpointError: another process writes to it, or it can't be written.
    """

    def __init__(self, folder: Path) -> None:
        """Read the scores; trained deltas are read when asked for."""
        self._folder = folder
        with storage.writing(folder):
            folder.mkdir(parents=True, exist_ok=True)
            self._lock: IO[str] = storage.lock(folder)
            self._scores = _read_scores(folder / _SCORES)
            _end_torn_line(folder / _SCORES)
            self._log = (folder / _SCORES).open("a", encoding="utf-8")

    def __enter__(self) -> Memo:
        return self

    def __exit__(self, *_: object) -> None:
        self.close()

    def close(self) -> None:
        """Let go of the folder."""
        self._log.close()
        self._lock.close()

    def scores(self, key: str) -> dict[str, Any] | None:
        """What was noted under `key`; None if nothing was."""
        return self._scores.get(key)

    def note_scores(self, key: str, values: Mapping[str, Any]) -> None:
        """Note scores, flushed at once."""
        if key not in self._scores:
            self._scores[key] = dict(values)
            with storage.writing(self._folder):
                storage.append_line(self._log, storage.to_json({"key": key, **values}), durable=False)

    def answer(self, key: str) -> Answer | None:
        """A silo's answer to a train message; None where it was not kept, or is damaged."""
        paths = self._paths(key)
        if not all(path.is_file() for path in paths):
            return None
        try:
            return _read_answer(*paths)
        except (OSError, ValueError, KeyError, TypeError) as err:
            logger.warning("%s: a kept answer is damaged and is computed again (%s)", paths[0], err)
            return None

    def note_answer(self, key: str, answer: Answer) -> None:
        """Keep an answer; the small file comes last, so that where it is the tensors are whole."""
        tensors_path, about_path = self._paths(key)
        tensors = {
            f"{record}{_SEPARATOR}{name}": value
            for record, values in answer.records.items()
            for name, value in values.items()
        }
        data = storage.tensors_file(tensors)
        about = {
            "sha256": storage.sha256_of(data),
            "records": list(answer.records),
            "metrics": dict(answer.metrics),
            "sender": dict(answer.sender),
        }
        with storage.writing(tensors_path):
            files: dict[str, storage.Content] = {
                tensors_path.name: data,
                about_path.name: storage.json_bytes(about),
            }
            storage.write_together(tensors_path.parent, files)

    def _paths(self, key: str) -> tuple[Path, Path]:
        folder = self._folder / "answers" / key[:2]
        return folder / f"{key}.safetensors", folder / f"{key}.json"


def _read_answer(tensors_path: Path, about_path: Path) -> Answer:
    about, data = json.loads(about_path.read_text(encoding="utf-8")), tensors_path.read_bytes()
    if storage.sha256_of(data) != about["sha256"]:
        raise ValueError("its hash differs")
    records: dict[str, dict[str, Tensor]] = {name: {} for name in about["records"]}
    for name, value in sorted(safetensors.torch.load(data).items()):
        record, _, tensor = name.partition(_SEPARATOR)
        records[record][tensor] = value
    return Answer(records, numbers(about["metrics"]), about["sender"])


def numbers(values: Mapping[str, Any]) -> dict[str, Any]:
    """Values as they were before they were written as JSON, which has no NaN: null there."""
    return {key: math.nan if value is None else value for key, value in values.items()}


def _read_scores(path: Path) -> dict[str, dict[str, Any]]:
    """The lines that are whole; the last one may have been cut off by a kill."""
    scores: dict[str, dict[str, Any]] = {}
    for line in path.read_text(encoding="utf-8").splitlines() if path.is_file() else []:
        try:
            values = numbers(json.loads(line))
            scores[values.pop("key")] = values
        except (ValueError, KeyError, AttributeError, TypeError):
            logger.warning("%s: a damaged line is left out, and computed again where it is needed", path)
    return scores


def _end_torn_line(path: Path) -> None:
    """Give a last line that was cut off its end, so that the next one begins on its own."""
    if path.is_file() and (data := path.read_bytes()) and not data.endswith(b"\n"):
        with path.open("a", encoding="utf-8") as file:
            file.write("\n")
