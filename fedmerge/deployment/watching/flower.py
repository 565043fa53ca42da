"""What a watcher asks of Flower: which runs are there, how one is, and to take another."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from fedmerge.config import Flat
from fedmerge.deployment.flwr import PATIENCE_SECONDS, NoAnswer, ask
from fedmerge.deployment.submission import submit
from fedmerge.deployment.watching.fate import Fate, fate_of

MOST_LISTED = 100


@dataclass(frozen=True)
class Run:
    """A run as Flower lists it.

    Args:
        id: Flower's number of it.
        status: "pending", "starting", "running", "finished:completed", "finished:failed", "finished:stopped".
        details: what Flower says besides.
    """

    id: str
    status: str
    details: str = ""

    @property
    def fate(self) -> Fate:
        """What became of it."""
        return fate_of(self.status, self.details)


@dataclass(frozen=True)
class Flower:
    """Flower as a server's folder reaches it.

    Args:
        server: the folder.
        connection: name of the connection, which is the federation's.
        timeout_seconds: after which a question is given up.
    """

    server: Path
    connection: str
    timeout_seconds: float = PATIENCE_SECONDS

    def find(self, run_id: str) -> Run | None:
        """The run of that id; None where the SuperLink answers, and does not know it.

        Raises:
            NoAnswer: the SuperLink can't be reached, or its answer can't be read.
        """
        try:
            return next(iter(self._list("--run-id", run_id)), None)
        except NoAnswer:
            return next((run for run in self.runs() if run.id == run_id), None)

    def runs(self) -> list[Run]:
        """The newest runs, the newest first.

        Raises:
            NoAnswer: as above.
        """
        return self._list("--limit", str(MOST_LISTED))

    def submit(self, flat: Flat) -> str:
        """Submit a run with this complete run-config; returns its id.

        Raises:
            NoAnswer: it was not taken, or whether it was is not known.
        """
        return submit(self.server, flat)

    def _list(self, *words: str) -> list[Run]:
        home = self.server / "flwr"
        found = ask(home, "list", self.connection, *words, timeout_seconds=self.timeout_seconds).get("runs")
        try:
            return [_run(entry) for entry in found or ()]
        except (KeyError, TypeError, AttributeError):
            raise NoAnswer("`flwr list` gave a list of runs that can't be read") from None


def _run(entry: Mapping[str, Any]) -> Run:
    details = str(entry.get("status-details") or "")
    return Run(str(entry["run-id"]), str(entry["status"]), "" if details == "N/A" else details)
