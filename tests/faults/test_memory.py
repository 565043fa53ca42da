"""Fault 48: a hundred megabytes from each of three silos, and what the server's process takes at most."""

from __future__ import annotations

import json
import subprocess
import sys
from pathlib import Path

import pytest
import torch

from fedmerge.wire.records import from_record, shared_record, to_record
from tests.server.world import bits, tensors

pytestmark = pytest.mark.fault(48)

MEMORY = Path(__file__).parents[2] / "benchmarks" / "memory.py"


@pytest.mark.slow
def test_a_server_of_three_silos_of_100_mb_takes_less_than_a_gigabyte(tmp_path):
    """Our own ServerApp, that writes each reply down before it is merged; all imports are counted."""
    command = [sys.executable, MEMORY, "--only", "fedmerge", "--json", tmp_path / "found.json"]
    done = subprocess.run(command, capture_output=True, text=True, check=False)
    assert done.returncode == 0, done.stdout + done.stderr
    [found] = json.loads((tmp_path / "found.json").read_text())
    assert found["peak"] < 1e9, done.stdout


def test_the_broadcast_and_its_record_are_one_copy():
    values = tensors(3) | {"half": torch.ones(3, dtype=torch.bfloat16), "none": torch.zeros(0, 4)}
    expected = bits(values)
    record, views = shared_record(dict(values))
    assert bits(views) == bits(from_record(record)) == expected
    assert bits(from_record(to_record(views))) == expected
    for name, view in views.items():
        data = record[name].data
        assert (
            view.nbytes == 0 or data[-view.nbytes :] == view.reshape(-1).view(torch.uint8).numpy().tobytes()
        )


def test_what_was_given_is_let_go():
    given = tensors(3)
    shared_record(given)
    assert given == {}
