"""The private SuperLink. What starts Flower for real takes half a minute and is marked slow."""

import os
import re
import signal
import subprocess
import sys
import time
import tomllib
from pathlib import Path

import psutil
import pytest

from fedmerge.config import EngineSettings, read_config
from fedmerge.engine import superlink
from fedmerge.engine.bundle import write_bundle
from fedmerge.engine.local import run_local
from fedmerge.engine.processes import end_family, family, terminate_as_interrupt
from fedmerge.engine.superlink import federation_config, private_environment, run_flower
from fedmerge.errors import RoundFailed
from fedmerge.server.observer import Silent

MARK = "FEDMERGE_TEST_MARK"


def flower_processes():
    """Every process that Flower or Ray started for one of our SuperLinks."""
    found = []
    for process in psutil.process_iter():
        try:
            if "fm-" in process.environ().get("FLWR_HOME", "") or "/fm-" in " ".join(process.cmdline()):
                found.append(process)
        except (psutil.Error, OSError):
            continue
    return found


def test_the_bundle_holds_configuration_and_no_code(tmp_path):
    folder = write_bundle(tmp_path / "bundle")
    assert {path.name for path in folder.iterdir()} <= {"pyproject.toml", "README.md", "LICENSE"}
    app = tomllib.loads((folder / "pyproject.toml").read_text())["tool"]["flwr"]["app"]
    assert app["components"]["serverapp"] == "fedmerge.server_app:app"
    assert app["config"]["run"]["rounds"] >= 1


def test_the_environment_finds_flowers_commands_and_fetches_nothing(tmp_path, monkeypatch):
    monkeypatch.setenv("HF_HUB_OFFLINE", "1")
    environment = private_environment(tmp_path)
    assert environment["PATH"].split(os.pathsep)[0] == str(Path(sys.executable).parent)
    assert environment["FLWR_HOME"] == str(tmp_path)
    assert environment["FLWR_DISABLE_RUNTIME_DEPENDENCY_INSTALLATION"] == "1"
    assert environment["HF_HUB_OFFLINE"] == "1"
    assert "127.0.0.1" in environment["NO_PROXY"]


def test_a_client_never_asks_for_more_cpus_than_there_are(monkeypatch):
    monkeypatch.setattr(superlink.os, "cpu_count", lambda: 1)
    engine = EngineSettings(workers=0, nodes=3, client_cpus=2, client_gpus=0.5)
    assert federation_config(engine) == (
        "num-supernodes=3 client-resources-num-cpus=1 client-resources-num-gpus=0.5"
    )


def test_a_family_ends_also_where_its_members_detach_and_ignore_sigterm(tmp_path):
    stubborn = "import signal, time; signal.signal(signal.SIGTERM, signal.SIG_IGN); time.sleep(60)"
    detached = f"[sys.executable, '-c', {stubborn!r}], start_new_session=True"
    parent = f"import subprocess, sys; subprocess.Popen({detached})"
    process = subprocess.Popen([sys.executable, "-c", parent], env=os.environ | {MARK: str(tmp_path)})
    process.wait()  # the child is nobody's descendant now
    time.sleep(0.5)
    assert len(family(process.pid, (MARK, str(tmp_path)))) == 1
    end_family(process.pid, (MARK, str(tmp_path)), grace_seconds=0.5)
    assert not family(process.pid, (MARK, str(tmp_path)))


def test_sigterm_is_an_interrupt_inside_and_what_it_was_outside():
    before = signal.getsignal(signal.SIGTERM)
    with pytest.raises(KeyboardInterrupt), terminate_as_interrupt():
        os.kill(os.getpid(), signal.SIGTERM)
        time.sleep(5)
    assert signal.getsignal(signal.SIGTERM) is before


@pytest.mark.slow
def test_flower_and_local_engine_give_the_same_bits(tiny_flat, tmp_path):
    class Notes(Silent):
        rounds, ends = (), 0

        def round_closed(self, report):
            self.rounds += (report["round"],)

        def finished(self, result):
            self.ends += 1

    notes, results = Notes(), {}
    for run in (run_local, run_flower):
        config = read_config(tiny_flat(run__output=str(tmp_path / run.__name__), lora__dropout=0.1))
        results[run.__name__] = run(config, notes)
    hashes = {(folder / "adapter" / "adapter_model.safetensors").read_bytes() for folder in results.values()}
    assert len(hashes) == 1
    assert notes.rounds == (1, 2, 1, 2) and notes.ends == 2
    assert not flower_processes()


@pytest.mark.slow
def test_minilm_with_dropout_gives_the_same_bits_on_both_engines(tiny_flat, tiny_rows, minilm, tmp_path):
    folders = []
    for run in (run_local, run_flower):
        flat = tiny_flat(
            run__output=str(tmp_path / run.__name__),
            run__rounds=2,
            run__baselines="",
            base__model=minilm,
            task__kind="classification",
            task__head="linear",
            data__label="topic",
            data__partition="iid(silos=3)",
            lora__dropout=0.1,
            engine__workers=2,
        )
        folders.append(run(read_config(flat)))
    one, two = ((folder / "adapter" / "adapter_model.safetensors").read_bytes() for folder in folders)
    assert one == two


@pytest.mark.slow
def test_a_run_that_fails_is_told_as_failed_with_its_sentence(tiny_flat):
    with pytest.raises(RoundFailed, match=r"finished:failed.*data\.source") as raised:
        run_flower(read_config(tiny_flat(data__source="/nowhere/rows.jsonl")))
    log = Path(re.search(r"log: (.*)\)", str(raised.value))[1])
    assert "SuperLink" in log.read_text(errors="replace")
    log.unlink()
    assert not flower_processes()


@pytest.mark.slow
@pytest.mark.parametrize("number", [signal.SIGINT, signal.SIGTERM])
def test_an_interrupt_leaves_no_process_behind(tiny_flat, tmp_path, number):
    flat = tiny_flat(train__steps=100000)
    script = tmp_path / "run.py"
    script.write_text(
        "from fedmerge.config import read_config\n"
        "from fedmerge.engine.superlink import run_flower\n"
        f"run_flower(read_config({flat!r}))\n"
    )
    here = {"PYTHONPATH": str(Path(superlink.__file__).parents[2])}
    process = subprocess.Popen([sys.executable, str(script)], env=os.environ | here, stderr=subprocess.PIPE)
    events = tmp_path / "run" / "events.jsonl"
    end = time.monotonic() + 180
    while not (events.is_file() and b"round_started" in events.read_bytes()):
        assert process.poll() is None and time.monotonic() < end
        time.sleep(0.2)
    assert flower_processes()
    process.send_signal(number)
    _, said = process.communicate(timeout=30)
    assert b"KeyboardInterrupt" in said
    assert not flower_processes()
