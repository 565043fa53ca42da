import hashlib
import json
import os
import signal
import threading

import psutil
import pytest
import torch
from flwr.supercore.task_identity import TaskIdentity

from fedmerge.config import read_config
from fedmerge.engine import local
from fedmerge.engine.executors import Forked, InProcess, can_fork
from fedmerge.engine.local import run_local
from fedmerge.errors import ConfigError, RoundFailed
from fedmerge.server.observer import Silent
from fedmerge.silo.worker import Worker

forks = pytest.mark.skipif(not can_fork(), reason="another thread runs, or there is no fork")


def adapter_hash(folder):
    return hashlib.sha256((folder / "adapter" / "adapter_model.safetensors").read_bytes()).hexdigest()


def result_of(folder):
    return json.loads((folder / "result.json").read_text())


def children():
    return psutil.Process().children(recursive=True)


class Interrupts(Silent):
    """Presses Ctrl-C when the first reply is in."""

    def reply(self, round, silo, outcome, metrics):
        raise KeyboardInterrupt


@pytest.fixture
def config(tiny_flat, tmp_path):
    def make(name="run", **changes):
        return read_config(tiny_flat(run__output=str(tmp_path / name), **changes))

    return make


@pytest.fixture
def executors(monkeypatch):
    """The kinds of executor that were made."""
    made = []
    for kind in (Forked, InProcess):
        monkeypatch.setattr(local, kind.__name__, lambda *a, kind=kind: made.append(kind) or kind(*a))
    return made


@forks
def test_a_run_gives_the_same_bits_whoever_serves_which_silo(config, executors):
    one = run_local(config("one", engine__workers=1))
    two = run_local(config("two", engine__workers=2))
    assert executors == [InProcess, Forked]
    assert adapter_hash(one) == adapter_hash(two)
    assert result_of(one)["candidates"] == result_of(two)["candidates"]
    assert not children()


@forks
def test_shadows_that_the_server_scores_beside_its_workers_change_no_bit(config, tiny_rows):
    changes = {"strategy__shadows": "ties(density=0.5)", "data__server": str(tiny_rows), "engine__workers": 2}
    plain = run_local(config("plain", run__baselines="", engine__workers=2))
    folder = run_local(config("scored", run__baselines="", strategy__shadow_scoring="server", **changes))
    assert adapter_hash(plain) == adapter_hash(folder)
    for report in result_of(folder)["rounds"]:
        assert set(report["shadows"]) == {"merged", "ties(density=0.5) @ factors()"}
        assert all(row["server"] > 0 for row in report["shadows"].values())


def test_what_a_run_leaves_behind(config):
    folder = run_local(config(strategy__shadows="ties(density=0.5)"))
    result = result_of(folder)
    names = ["base", "alone/birds", "alone/rocks", "alone/ships", "shadow/ties(density=0.5) @ factors()"]
    assert [name for name in result["candidates"] if name != "merged/1"] == [*names, "merged", "pooled"]
    assert result["metric"] == "bits_per_byte" and result["higher_is_better"] is False
    assert result["silos"] == ["birds", "rocks", "ships"]
    for name, row in result["candidates"].items():
        assert set(row["test"]) == {"birds", "rocks", "ships"}
        # Validation rows decide between rounds; other candidates have no need of them.
        assert set(row["validation"]) == (set(row["test"]) if name.startswith(("base", "merged")) else set())
        assert row["worst"] == max(row["test"].values())
        assert row["mean"] == pytest.approx(sum(row["test"].values()) / 3)
    assert set(result["seconds"]) == {"setup", "rounds", "scoring"}
    assert result["bytes_up"] > 0 and result["bytes_down"] > 0 and result["refused"] == []
    assert [report["round"] for report in result["rounds"]] == [1, 2]
    assert (folder / "adapter" / "adapter_config.json").is_file()
    assert json.loads((folder / "environment.json").read_text())["nodes"]


@forks
@pytest.mark.parametrize("workers", [1, 2])
def test_ctrl_c_stops_everything_at_once(config, workers):
    threads = torch.get_num_threads()
    before = [TaskIdentity._task_id, TaskIdentity._run_id, TaskIdentity._node_id]
    with pytest.raises(KeyboardInterrupt):
        run_local(config(engine__workers=workers), Interrupts())
    assert not children()
    assert [TaskIdentity._task_id, TaskIdentity._run_id, TaskIdentity._node_id] == before
    assert torch.get_num_threads() == threads
    run_local(config())  # the folder is free again


@pytest.fixture
def rocks_dies(monkeypatch):
    """Silo "rocks" raises in this process, and ends the process where it is a worker's."""
    train, here = Worker.train, os.getpid()

    def dying(self, broadcast, order):
        if order.silo == "rocks":
            if os.getpid() != here:
                os.kill(os.getpid(), signal.SIGKILL)
            raise ValueError("as wished")
        return train(self, broadcast, order)

    monkeypatch.setattr(Worker, "train", dying)


@forks
def test_a_worker_that_dies_costs_its_silo_and_changes_no_bit_of_the_rest(config, rocks_dies):
    one = run_local(config("one", engine__workers=1, strategy__quorum=0.6))
    two = run_local(config("two", engine__workers=2, strategy__quorum=0.6))
    assert adapter_hash(one) == adapter_hash(two)
    for folder, reason in ((one, "as wished"), (two, "crashed")):
        refused = result_of(folder)["refused"]
        assert [(each["round"], each["silo"]) for each in refused] == [(1, "rocks"), (2, "rocks")]
        assert all(reason in each["reason"] for each in refused)
    assert "alone/rocks" not in result_of(two)["candidates"]
    assert "merged" in result_of(two)["candidates"]


def test_too_few_replies_fail_the_run_and_leave_nothing_running(config, rocks_dies):
    with pytest.raises(RoundFailed, match="rocks"):
        run_local(config(engine__workers=2))
    assert not children()


def test_a_wrong_configuration_is_said_in_its_own_words(config):
    with pytest.raises(ConfigError, match=r"data\.source"):
        run_local(config(data__source="/nowhere/rows.jsonl"))
    with pytest.raises(ConfigError, match=r"base\.fingerprint"):
        run_local(config(base__fingerprint="0" * 64))


def test_no_worker_is_forked_beside_another_thread(config, executors):
    release = threading.Event()
    thread = threading.Thread(target=release.wait)
    thread.start()
    try:
        run_local(config(engine__workers=2, run__rounds=1, run__baselines=""))
    finally:
        release.set()
        thread.join()
    assert executors == [InProcess]


def test_how_many_workers(config, monkeypatch):
    monkeypatch.setattr(local, "cores", lambda: 8)
    assert local.workers(config(engine__workers=0), silos=100, device="cpu") == 8
    assert local.workers(config(engine__workers=0, train__threads=4), silos=100, device="cpu") == 2
    assert local.workers(config(engine__workers=0, train__threads=16), silos=100, device="cpu") == 1
    assert local.workers(config(engine__workers=0), silos=3, device="cpu") == 3
    assert local.workers(config(engine__workers=5), silos=100, device="cpu") == 5
    assert local.workers(config(engine__workers=5), silos=100, device="cuda") == 1
