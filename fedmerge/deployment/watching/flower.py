"""Flower's own commands, `flwr list` and `flwr run`, as functions."""

from __future__ import annotations

import json
import os
import shutil
import subprocess
import sys
import tempfile
from collections.abc import Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from fedmerge.config import Flat
from fedmerge.deployment.watching.fate import Fate, fate_of
from fedmerge.engine.bundle import write_bundle
from fedmerge.errors import FedMergeError
from fedmerge.server.storage import to_toml

MOST_LISTED = 100
_LONGEST_SENTENCE = 300


class NoAnswer(FedMergeError):
    """Flower gave no answer that can be used; the message says what it gave instead."""


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
    """The `flwr` command over one connection.

    Args:
        home: FLWR_HOME, which holds the connection.
        connection: its name.
        timeout_seconds: after which a command that does not end is killed.
    """

    home: Path
    connection: str
    timeout_seconds: float = 120.0

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

        The bundle holds configuration only: every party runs the fedmerge that it installed.

        Raises:
            NoAnswer: it was not taken, or whether it was is not known.
        """
        with tempfile.TemporaryDirectory(prefix="fedmerge-run-") as folder:
            file = Path(folder) / "run.toml"
            file.write_text(to_toml(flat), encoding="utf-8")
            bundle = write_bundle(Path(folder) / "bundle")
            answer = self._ask("run", str(bundle), self.connection, "--run-config", str(file))
        if not answer.get("run-id"):
            raise NoAnswer("`flwr run` gave the run no id")
        return str(answer["run-id"])

    def _list(self, *arguments: str) -> list[Run]:
        runs = self._ask("list", self.connection, *arguments).get("runs")
        try:
            return [_run(entry) for entry in runs or ()]
        except (KeyError, TypeError, AttributeError):
            raise NoAnswer("`flwr list` gave a list of runs that can't be read") from None

    def _ask(self, command: str, *arguments: str) -> dict[str, Any]:
        """The JSON object that a command answers with."""
        words = [_executable(), command, *arguments, "--format", "json"]
        try:
            done = subprocess.run(
                words, env=_environment(self.home), stdin=subprocess.DEVNULL, capture_output=True, text=True,
                timeout=self.timeout_seconds, check=False, errors="replace",
                start_new_session=True,  # a Ctrl-C meant for us shall not cut a submission in two
            )  # fmt: skip
        except subprocess.TimeoutExpired:
            raise NoAnswer(f"`flwr {command}` did not end within {self.timeout_seconds:g} seconds") from None
        except OSError as error:
            raise NoAnswer(f"`flwr {command}` can't be run: {error.strerror}") from None
        answer = _object(done.stdout)
        if done.returncode or not answer.get("success"):
            raise NoAnswer(f"`flwr {command}` failed: {_said(answer, done)}")
        return answer


def _run(entry: Mapping[str, Any]) -> Run:
    details = str(entry.get("status-details") or "")
    return Run(str(entry["run-id"]), str(entry["status"]), "" if details == "N/A" else details)


def _object(text: str) -> dict[str, Any]:
    """The JSON object that a text ends with; empty where there is none."""
    try:
        value = json.loads(text[text.index("{") :])
    except (ValueError, RecursionError):
        return {}
    return value if isinstance(value, dict) else {}


def _said(answer: Mapping[str, Any], done: subprocess.CompletedProcess[str]) -> str:
    """What a failed command said last, on one line."""
    said = str(answer.get("error-message") or "") or done.stderr or done.stdout
    lines = [line.strip() for line in said.splitlines() if line.strip()]
    return lines[-1][:_LONGEST_SENTENCE] if lines else f"it said nothing, and ended with {done.returncode}"


def _executable() -> str:
    """`flwr` of the path, or the one installed beside this Python."""
    return shutil.which("flwr") or str(Path(sys.executable).parent / "flwr")


def _environment(home: Path) -> dict[str, str]:
    bypass = ",".join(filter(None, (os.environ.get("NO_PROXY", ""), "127.0.0.1", "localhost")))
    return os.environ | {
        "NO_PROXY": bypass,
        "no_proxy": bypass,
        "FLWR_HOME": str(home),
        "FLWR_TELEMETRY_ENABLED": "0",
        "FLWR_DISABLE_UPDATE_CHECK": "1",
        "PYTHONIOENCODING": "utf-8",
    }
