"""The command as a user starts it: real processes, the built-in base, two silos of a few rows."""

import json
import os
import signal
import subprocess
import sys
from pathlib import Path

import pytest

FEDMERGE = [sys.executable, "-m", "fedmerge.cli"]
QUICK = ["--set", "train.steps=2", "--set", "run.rounds=1", "--set", "run.baselines=alone"]


@pytest.fixture
def project(tmp_path: Path) -> Path:
    folder = tmp_path / "project"
    subprocess.run([*FEDMERGE, "init", str(folder)], check=True, capture_output=True)
    return folder


def test_the_project_of_init_runs_and_its_adapter_can_be_evaluated(project: Path) -> None:
    def run(*arguments: str) -> dict:
        done = subprocess.run(
            [*FEDMERGE, *arguments, "--json"], cwd=project, capture_output=True, text=True, check=False
        )
        assert done.returncode == 0, done.stderr
        return json.loads(done.stdout)

    result = run("simulate", "simulation.toml", *QUICK)
    assert set(result["candidates"]) == {"base", "merged", "alone/harbour", "alone/kitchen"}
    assert result["folder"].startswith(str(project / "runs"))
    scores = run("evaluate", result["adapter"], "simulation.toml")
    assert scores["candidates"]["adapter"]["mean"] == pytest.approx(
        result["candidates"]["merged"]["mean"], rel=1e-4
    )


@pytest.mark.skipif(sys.platform == "win32", reason="no SIGINT to one process")
def test_ctrl_c_stops_with_a_sentence_and_leaves_no_process(project: Path) -> None:
    command = [*FEDMERGE, "simulate", "simulation.toml", "--set", "train.steps=100000"]
    process = subprocess.Popen(
        command,
        cwd=project,
        stderr=subprocess.PIPE,
        stdout=subprocess.PIPE,
        text=True,
        start_new_session=True,
    )
    assert process.stderr is not None
    for line in process.stderr:
        if line.startswith("2 silos, "):
            break
    os.killpg(process.pid, signal.SIGINT)  # as a terminal does: the workers get it too
    out, err = process.communicate(timeout=60)
    assert process.returncode == 130, err
    assert out == ""
    assert err.splitlines()[-1].startswith("fedmerge: stopped by Ctrl-C; what the run had written lies in ")
    assert "Traceback" not in err
    with pytest.raises(ProcessLookupError):
        os.killpg(process.pid, 0)
