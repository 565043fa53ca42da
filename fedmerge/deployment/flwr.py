"""Flower's own command on the server's machine: one question, one JSON object as the answer."""

from __future__ import annotations

import json
import os
import shutil
import subprocess
import sys
from collections.abc import Mapping
from pathlib import Path
from typing import Any

from fedmerge.errors import FedMergeError

PATIENCE_SECONDS = 300.0
_LONGEST_SENTENCE = 300


class NoAnswer(FedMergeError):
    """Flower gave no answer that can be used; the message says what it gave instead."""


def ask(home: Path, *words: str, timeout_seconds: float = PATIENCE_SECONDS) -> dict[str, Any]:
    """The answer of a `flwr` command.

    Args:
        home: FLWR_HOME, which holds the connection.
        words: the command and its arguments.
        timeout_seconds: after which it is killed.

    Raises:
        NoAnswer: it failed, did not end in time, or said nothing that can be read. With `--format json` it
            exits with 0 also where it failed; what it says of itself counts.
    """
    try:
        done = subprocess.run(
            [_executable(), *words, "--format", "json"],
            env=_environment(home), stdin=subprocess.DEVNULL, capture_output=True, text=True,
            timeout=timeout_seconds, check=False, errors="replace",
            start_new_session=True,  # a Ctrl-C meant for us shall not cut a submission in two
        )  # fmt: skip
    except subprocess.TimeoutExpired:
        raise NoAnswer(f"`flwr {words[0]}` did not end within {timeout_seconds:g} seconds") from None
    except OSError as error:
        raise NoAnswer(f"`flwr {words[0]}` can't be run: {error.strerror}") from None
    answer = _object(done.stdout)
    if done.returncode or not answer.get("success"):
        raise NoAnswer(f"`flwr {words[0]}` failed: {_said(answer, done)}")
    return answer


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
        "FLWR_HOME": str(home),
        "FLWR_TELEMETRY_ENABLED": "0",
        "FLWR_DISABLE_UPDATE_CHECK": "1",
        "NO_PROXY": bypass,
        "no_proxy": bypass,
        "PYTHONIOENCODING": "utf-8",
    }
