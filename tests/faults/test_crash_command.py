"""Fault 36 as a user meets it: `fedmerge simulate` is killed, and started again with `--resume`."""

from __future__ import annotations

import json
import signal
import subprocess
import sys
from pathlib import Path

import pytest

from .crashing import outcome

COMMAND = [sys.executable, "-m", "fedmerge.cli", "simulate"]
SETS = {
    "run.rounds": "3",
    "train.steps": "4",
    "data.max-rows": "40",
    "run.baselines": "alone",
    "engine.workers": "2",
}


def command(folder: Path, *more: str) -> list[str]:
    sets = SETS | {"run.output": str(folder)}
    return [*COMMAND, *(word for key, value in sets.items() for word in ("--set", f"{key}={value}")), *more]


def killed_when(folder: Path, said: str) -> None:
    """Start or go on, and kill -9 the command as soon as it says something."""
    process = subprocess.Popen(
        command(folder, "--resume"), stderr=subprocess.PIPE, stdout=subprocess.DEVNULL, text=True
    )
    assert process.stderr is not None
    for line in process.stderr:
        if line.startswith(said):
            process.kill()
    process.stderr.close()
    assert process.wait() == -signal.SIGKILL, said


@pytest.mark.slow
@pytest.mark.fault(36)
@pytest.mark.skipif(sys.platform == "win32", reason="no kill -9")
def test_a_command_that_is_killed_goes_on(tmp_path):
    """Fault 36: twice killed in the midst of its rounds; the built-in base, forked workers."""
    subprocess.run(command(tmp_path / "one"), check=True, capture_output=True)
    killed_when(tmp_path / "two", "round 1/3: ")
    killed_when(tmp_path / "two", "round 2/3: ")
    done = subprocess.run(
        command(tmp_path / "two", "--resume", "--json"), check=True, capture_output=True, text=True
    )
    result = json.loads(done.stdout)
    one, two = outcome(tmp_path / "one"), outcome(tmp_path / "two")
    assert one["result"]["adapter_sha256"] == result["adapter_sha256"]
    assert two == one
    again = subprocess.run(
        command(tmp_path / "two", "--resume", "--json"), check=True, capture_output=True, text=True
    )
    assert json.loads(again.stdout)["rounds"] == result["rounds"]
