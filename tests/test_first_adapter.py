"""The first adapter is made where the server does not keep what it takes."""

from __future__ import annotations

import json
import multiprocessing
import subprocess
import sys
from pathlib import Path
from typing import Any

import pytest

from fedmerge.config import read_config
from fedmerge.errors import ConfigError
from fedmerge.server.storage import sha256_of, tensors_file
from fedmerge.server_app.first_adapter import first_adapter
from fedmerge.silo.lora import initial_adapter

SERVER = """
import json, multiprocessing, os, signal, sys

import fedmerge.server_app
from fedmerge.config import read_config
from fedmerge.errors import ConfigError
from fedmerge.server.storage import sha256_of, tensors_file
from fedmerge.server_app.first_adapter import first_adapter

class Unfit:  # labels that a library can't take
    def __bool__(self):
        raise RuntimeError("no bytes")

def process(flat):
    return first_adapter(read_config(flat).silo)

def main(flat):
    told = {}
    %s
    told["left"] = len(multiprocessing.active_children())
    told["loaded"] = [name for name in ("transformers", "peft") if name in sys.modules]
    print(json.dumps(told), flush=True)

if __name__ == "__main__":
    main(json.loads(sys.argv[1]))
"""

MADE = """
    with process(flat) as make:
        adapter = make(("b", "a"))
    told["made"] = [sha256_of(tensors_file(adapter.tensors)), repr(adapter.lora), repr(adapter.metadata)]
"""

ENDINGS = """
    try:
        with process(flat | {"lora.target-modules": "nothing_such"}) as make:
            make(None)
    except ConfigError as error:
        told["refused"] = str(error)
    try:
        with process(flat) as make:
            [maker] = multiprocessing.active_children()
            os.kill(maker.pid, signal.SIGKILL)
            make(None)
    except RuntimeError as error:
        told["killed"] = str(error)
    try:
        with process(flat) as make:
            make(Unfit())
    except RuntimeError as error:
        told["broken"] = str(error)
    if os.fork() == 0:
        with process(flat):
            os.kill(os.getpid(), signal.SIGKILL)
"""


def told(tmp_path: Path, steps: str, flat: dict[str, Any]) -> dict[str, Any]:
    """What a server of these steps says, once all that it started have ended, too: they share its output."""
    script = tmp_path / "server.py"
    script.write_text(SERVER % steps.strip())
    command = [sys.executable, script, json.dumps(flat)]
    done = subprocess.run(command, capture_output=True, text=True, check=False, timeout=300)
    assert done.returncode == 0, done.stderr
    found: dict[str, Any] = json.loads(done.stdout)
    return found


def test_another_process_makes_the_same_adapter(tmp_path, tiny_flat):
    found = told(tmp_path, MADE, tiny_flat())
    expected = initial_adapter(read_config(tiny_flat()).silo, ("b", "a"))
    digest = sha256_of(tensors_file(expected.tensors))
    assert found["made"] == [digest, repr(expected.lora), repr(expected.metadata)]
    assert found["left"] == 0
    assert found["loaded"] == []


@pytest.mark.slow
def test_it_is_refused_with_the_same_sentence_or_killed_or_left_alone(tmp_path, tiny_flat):
    found = told(tmp_path, ENDINGS, tiny_flat())
    with pytest.raises(ConfigError) as refused:
        initial_adapter(read_config(tiny_flat(lora__target_modules="nothing_such")).silo)
    assert found["refused"] == str(refused.value)
    assert found["killed"] == "the process that makes the first adapter ended early, with -9"
    assert "RuntimeError: no bytes" in found["broken"]
    assert found["left"] == 0


def test_where_transformers_is_loaded_no_process_is_started(tiny_flat):
    silo = read_config(tiny_flat()).silo
    with first_adapter(silo) as make:
        assert multiprocessing.active_children() == []
        made = make(None)
    expected = initial_adapter(silo)
    assert tensors_file(made.tensors) == tensors_file(expected.tensors)
