"""What a watcher remembers: one file in the runs folder, whole or not there, and a lock beside it."""

from __future__ import annotations

import dataclasses
import json
import os
from collections.abc import Iterator
from contextlib import contextmanager
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from fedmerge.config import Config, Flat, read_config
from fedmerge.errors import CheckpointError, ConfigError
from fedmerge.server import storage

FILE = "watch.json"
LOCK = ".watch.lock"


@dataclass(frozen=True)
class Memory:
    """What must survive the watcher.

    Args:
        config: the run-config as it is submitted, complete; `run.output` is the run's folder.
        runs: Flower's ids of the attempts so far, the last one last.
        submitting: the ids that Flower knew when a submission began whose answer is not written down yet;
            None where none is under way. A new id besides these is that submission's.
        in_a_row: attempts at the end of these without a round closed in between, refused ones included.
        closed: rounds that were closed when the last attempt was submitted.
        ended: why there are no more attempts; "" while there may be.
        completed: whether the run came to its end.
    """

    config: Flat
    runs: tuple[str, ...] = ()
    submitting: tuple[str, ...] | None = None
    in_a_row: int = 0
    closed: int = 0
    ended: str = ""
    completed: bool = False

    @property
    def folder(self) -> Path:
        """The run's folder."""
        return Path(str(self.config["run.output"]))

    @property
    def resubmissions(self) -> int:
        """Attempts after the first."""
        return max(0, len(self.runs) - 1)

    def checked(self) -> Config:
        """The run-config as dataclasses."""
        return read_config(self.config)


def write(runs: Path, memory: Memory) -> None:
    """Write it down, whole or not at all.

    Raises:
        CheckpointError: disk full, read-only, no permission.
    """
    file = runs / FILE
    with storage.writing(file):
        storage.write_json(file, dataclasses.asdict(memory))


def read(runs: Path) -> Memory | None:
    """What the last watcher wrote down; None where there was none.

    Raises:
        CheckpointError: the file is not what a watcher writes.
    """
    file = runs / FILE
    try:
        values = json.loads(file.read_text(encoding="utf-8"))
        return _memory(values)
    except FileNotFoundError:
        return None
    except OSError as error:
        raise CheckpointError(f"{file}: can't be read ({error.strerror})") from None
    except (ValueError, TypeError, KeyError, ConfigError):
        raise CheckpointError(
            f"{file} is not what a watcher writes; remove it, and give the run's TOML file again"
        ) from None


def _memory(values: dict[str, Any]) -> Memory:
    submitting = values.pop("submitting")
    memory = Memory(
        **values | {"runs": tuple(values["runs"])},
        submitting=None if submitting is None else tuple(submitting),
    )
    if not memory.checked().run.output:
        raise ConfigError("no run.output")
    return memory


@contextmanager
def only_one(runs: Path) -> Iterator[None]:
    """Be the only watcher of a runs folder; the lock ends with the process, however it ends.

    Raises:
        CheckpointError: another one has it, or it can't be written.
    """
    with storage.writing(runs):
        runs.mkdir(parents=True, exist_ok=True)
        handle = (runs / LOCK).open("a+", encoding="utf-8")
    with handle:
        if not storage.try_lock(handle):
            handle.seek(0)
            pid = handle.read().strip() or "unknown"
            raise CheckpointError(f"{runs}: another watcher (process {pid}) is at work there; it goes on")
        handle.truncate(0)
        handle.write(f"{os.getpid()}\n")
        handle.flush()
        yield


def in_use(folder: Path) -> bool:
    """Whether a process works in a run's folder, one that Flower may no longer know of included."""
    try:
        handle = (folder / storage.LOCK).open(encoding="utf-8")
    except OSError:  # no run was ever there
        return False
    with handle:
        return not storage.try_lock(handle)
