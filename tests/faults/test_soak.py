"""Fault 49: many rounds in one process leave memory, descriptors, threads and disk as flat as a few."""

from __future__ import annotations

import runpy
import subprocess
import sys
from pathlib import Path

import pytest

pytestmark = pytest.mark.fault(49)

SOAK = Path(__file__).parents[2] / "benchmarks" / "soak.py"


@pytest.fixture(scope="module")
def script():
    return runpy.run_path(str(SOAK))


def test_rounds_that_train_leave_nothing_behind(tiny_flat, script, tmp_path):
    """A tenth of `make soak`, with silos that really train: there the limit is a tenth of a megabyte."""
    changes = tiny_flat(run__baselines="", train__steps=1, train__batch_size=1, strategy__rule="fedavg()")
    seen = script["soak"](
        50, tmp_path / "run", **(changes | {"run.rounds": 50, "run.output": str(tmp_path / "run")})
    )
    script["LIMITS"]["memory"] = 100_000.0
    lines, wrong = script["judge"](seen)
    assert not wrong, "\n".join(lines)


def looks(rounds: int = 100, **growth: float) -> list[dict[str, float]]:
    start = {"memory": 5e8, "descriptors": 20.0, "threads": 2.0, "disk": 1e5, "files": 9.0}
    per_round = {"disk": 9000.0, **growth}
    return [
        {key: value + place * per_round.get(key, 0) for key, value in start.items()}
        for place in range(rounds)
    ]


def test_what_is_flat_passes(script):
    assert script["judge"](looks(memory=5000.0))[1] == []


@pytest.mark.parametrize(("what", "growth"), [("memory", 200_000.0), ("descriptors", 0.1), ("threads", 0.05)])
def test_what_grows_is_found(script, what, growth):
    [complaint] = script["judge"](looks(**{what: growth}))[1]
    assert complaint.startswith(f"{what} grows by")


def test_a_folder_that_keeps_more_with_each_round_is_found(script):
    seen = looks()
    for place, look in enumerate(seen):
        look["disk"] += 5 * place**2
    assert "adds to the folder" in script["judge"](seen)[1][0]


@pytest.mark.slow
def test_five_hundred_rounds():
    done = subprocess.run(
        [sys.executable, SOAK, "--rounds", "500"], capture_output=True, text=True, check=False
    )
    assert done.returncode == 0, done.stdout + done.stderr
    print(done.stdout)
