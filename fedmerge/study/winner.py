"""The best adapter of a sweep, on disk as soon as there is one."""

from __future__ import annotations

import secrets
import shutil
from collections.abc import Mapping
from dataclasses import dataclass, replace
from pathlib import Path

from fedmerge.adapters import Adapter
from fedmerge.errors import FedMergeError
from fedmerge.server import storage
from fedmerge.study.leaderboard import Line
from fedmerge.wire.files import load_adapter, save_adapter

FOLDER = "best"


@dataclass(frozen=True)
class Winner:
    """The folder `best/` of a sweep: a PEFT adapter that is replaced whole whenever a better one comes.

    Args:
        folder: of the sweep.
        base_model: for PEFT's config.
        task_type: likewise.
        metadata: what travels with the adapter: base, fingerprint, task, labels.
    """

    folder: Path
    base_model: str
    task_type: str | None
    metadata: Mapping[str, str]

    @property
    def path(self) -> Path:
        """Where it lies."""
        return self.folder / FOLDER

    def holds(self, line: Line) -> bool:
        """Whether what lies there is a line's adapter."""
        try:
            told = self.adapter().metadata
        except FedMergeError:
            return False
        return all(told.get(name) == value for name, value in _about(line).items())

    def adapter(self) -> Adapter:
        """What lies there.

        Raises:
            FedMergeError: nothing, or nothing whole.
        """
        return load_adapter(self.path, fetch=False)

    def keep(self, line: Line, adapter: Adapter) -> None:
        """Write an adapter in the place of the one before.

        Rank and tensors stand in two files, which must belong to each other: the whole folder is replaced.

        Raises:
            CheckpointError: the disk refuses; what stood there is intact.
        """
        told = replace(adapter, metadata=adapter.metadata | dict(self.metadata) | _about(line))
        fresh, old = (self.folder / f".{FOLDER}.{secrets.token_hex(4)}" for _ in range(2))
        with storage.writing(self.path):
            save_adapter(told, fresh, base_model=self.base_model, task_type=self.task_type)
            if self.path.exists():
                self.path.rename(old)
            fresh.rename(self.path)
            self._tidy()

    def _tidy(self) -> None:
        """Remove what an interrupted replacement left."""
        for left in self.folder.glob(f".{FOLDER}.*"):
            shutil.rmtree(left, ignore_errors=True)


def _about(line: Line) -> dict[str, str]:
    """What an adapter's file says of the candidate that it is."""
    mean = f"{line.metric} {line.mean:.6g}" if line.mean is not None else ""
    return {
        "rule": line.candidate.rule, "space": line.candidate.space, "sweep": line.key, "validation": mean,
    }  # fmt: skip
