from __future__ import annotations

import errno
import json
import multiprocessing
import os
import shutil
import stat
import tomllib
from pathlib import Path

import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st
from safetensors.torch import load_file

from fedmerge.adapters import Adapter, Lora
from fedmerge.errors import CheckpointError
from fedmerge.server import storage
from fedmerge.server.folder import RunFolder, differing_keys
from fedmerge.wire import tensorfile
from fedmerge.wire.files import load_adapter

CONFIG = {
    "run.rounds": 4,
    "run.name": 'a "b"\n\x7fü',
    "run.record": True,
    "train.learning-rate": 1e-5,
    "flat": "",
}
ADAPTER = Adapter(
    {
        "base_model.model.q.lora_A.weight": torch.ones(2, 4, dtype=torch.bfloat16),
        "base_model.model.q.lora_B.weight": torch.zeros(3, 2),
    },
    Lora(rank=2, alpha=4),
)


def started(path: Path, **changes) -> RunFolder:
    folder = RunFolder(path, {**CONFIG, **changes})
    folder.start({"torch": torch.__version__})
    return folder


def test_the_config_comes_back_as_it_was(tmp_path):
    started(tmp_path / "run").close()
    assert storage.read_toml(tmp_path / "run" / "config.toml") == CONFIG
    nested = tomllib.loads((tmp_path / "run" / "config.toml").read_text(encoding="utf-8"))
    assert nested["run"]["rounds"] == 4


def test_a_run_is_replaced_by_one_of_the_same_config_when_that_starts(tmp_path):
    folder = started(tmp_path / "run")
    folder.write_round(0, ADAPTER)
    folder.write_adapter(ADAPTER)
    folder.finished({"score": 1.0})
    folder.close()
    (tmp_path / "run" / "notes.txt").write_text("mine")
    for name in ("private", "personal"):  # of an earlier run's silos: nothing that this one may read
        (tmp_path / "run" / name / "a").mkdir(parents=True)
    again = RunFolder(tmp_path / "run", {**CONFIG, "run.name": "other", "engine.workers": 3})
    assert (tmp_path / "run" / "result.json").is_file()
    again.start({})
    left = sorted(path.name for path in (tmp_path / "run").iterdir())
    assert left == [".lock", "config.toml", "environment.json", "events.jsonl", "notes.txt"]
    assert storage.read_toml(tmp_path / "run" / "config.toml")["engine.workers"] == 3
    again.close()


def test_a_folder_of_another_config_is_refused_with_its_keys(tmp_path):
    started(tmp_path / "run").close()
    with pytest.raises(
        CheckpointError, match=r"holds a run of another config: run\.rounds, train\.epochs differ"
    ):
        RunFolder(tmp_path / "run", {**CONFIG, "run.rounds": 5, "train.epochs": 1})
    assert differing_keys(CONFIG, CONFIG) == []


@pytest.mark.parametrize("content", ["x = [", b"\xff\xfe"])
def test_a_damaged_config_is_refused(tmp_path, content):
    write = Path.write_bytes if isinstance(content, bytes) else Path.write_text
    write(tmp_path / "config.toml", content)
    with pytest.raises(CheckpointError, match=r"config\.toml can't be read"):
        RunFolder(tmp_path, CONFIG)


def test_a_folder_that_holds_something_else_is_refused(tmp_path):
    (tmp_path / "thesis.tex").write_text("years of work")
    with pytest.raises(
        CheckpointError, match=r"holds 'thesis\.tex' and no config\.toml: it is no run's folder"
    ):
        RunFolder(tmp_path, CONFIG)
    with pytest.raises(CheckpointError, match="is a file, expected a folder"):
        RunFolder(tmp_path / "thesis.tex", CONFIG)
    assert (tmp_path / "thesis.tex").read_text() == "years of work"


def test_an_empty_folder_will_do_and_the_path_is_absolute(tmp_path, monkeypatch):
    monkeypatch.chdir(tmp_path)
    (tmp_path / "run").mkdir()
    folder = started(Path("run"))
    assert folder.path == tmp_path / "run"
    folder.close()


def test_two_runs_on_one_folder_the_second_is_refused(tmp_path):
    first = started(tmp_path / "run")
    with pytest.raises(CheckpointError, match="is in use by another run"):
        RunFolder(tmp_path / "run", CONFIG)
    first.close()
    RunFolder(tmp_path / "run", CONFIG).close()


def test_the_hashes_and_the_chain_of_rounds(tmp_path):
    folder = started(tmp_path / "run")
    folder.write_round(0, ADAPTER)
    folder.write_delta(1, "../evil", ADAPTER)
    folder.write_round(1, ADAPTER, optimizer={"momentum/a": torch.ones(2)}, state={"silos": {"a": 1.0}})
    folder.close()
    zero, one = tmp_path / "run/rounds/0000", tmp_path / "run/rounds/0001"
    state = json.loads((one / "state.json").read_text())
    assert state["previous"] == storage.hash_of(zero / "state.json")
    assert json.loads((zero / "state.json").read_text())["previous"] == ""
    assert state["sha256"] == {name: storage.hash_of(one / name) for name in state["sha256"]}
    assert list(state["sha256"]) == [
        "broadcast.safetensors",
        "optimizer.safetensors",
        "deltas/%2E%2E%2Fevil.safetensors",
    ]
    assert (
        load_file(one / "broadcast.safetensors")["base_model.model.q.lora_A.weight"].dtype == torch.bfloat16
    )
    assert load_file(one / "optimizer.safetensors")["momentum/a"].tolist() == [1, 1]
    assert not list((tmp_path / "run").rglob(".*.*"))


def test_the_same_content_gives_the_same_bytes(tmp_path):
    hashes = []
    for name in ("one", "two"):
        folder = started(tmp_path / name)
        folder.write_delta(1, "a", ADAPTER)
        folder.write_round(1, ADAPTER)
        folder.close()
        hashes.append(storage.hash_of(tmp_path / name / "rounds/0001/state.json"))
    assert hashes[0] == hashes[1]


def test_tensors_that_share_memory_are_written(tmp_path):
    whole = torch.arange(8.0)
    storage.write_tensors(tmp_path / "x.safetensors", {"a": whole[:4], "b": whole[2:].view(2, 3).t()})
    back = load_file(tmp_path / "x.safetensors")
    assert back["a"].tolist() == [0, 1, 2, 3] and back["b"].tolist() == [[2, 5], [3, 6], [4, 7]]


def test_events_are_standard_json(tmp_path):
    folder = started(tmp_path / "run")
    folder.run_started({"rounds": 2})
    folder.phase("waiting")
    folder.round_started(1, ("a",))
    folder.reply(1, "a", "admitted", {"loss": float("nan"), "x": float("inf")})
    folder.round_closed({"round": 1, "path": Path("x")})
    folder.finished({"adapter": "out"})
    folder.close()
    lines = [
        json.loads(line, parse_constant=pytest.fail)
        for line in (folder.path / "events.jsonl").read_text().splitlines()
    ]
    assert [line.pop("event") for line in lines] == [
        "run_started", "phase", "round_started", "reply", "round_closed", "finished",
    ]  # fmt: skip
    assert lines[3]["metrics"] == {"loss": None, "x": None}
    assert json.loads((folder.path / "metrics.jsonl").read_text()) == {"round": 1, "path": "x"}
    assert json.loads((folder.path / "result.json").read_text()) == {"adapter": "out"}
    with pytest.raises(CheckpointError, match="was not started, or is closed"):
        folder.phase("late")


def test_an_adapter_can_be_loaded(tmp_path):
    folder = started(tmp_path / "run")
    path = folder.write_adapter(ADAPTER, base_model="gpt", task_type="CAUSAL_LM")
    folder.close()
    assert path == tmp_path / "run" / "adapter"
    assert load_adapter(path).lora.rank == 2


@pytest.mark.parametrize("number", [errno.ENOSPC, errno.EROFS, errno.EACCES])
def test_a_disk_that_refuses_leaves_what_stood_there(tmp_path, monkeypatch, number):
    folder = started(tmp_path / "run")
    folder.write_adapter(ADAPTER)
    folder.write_round(0, ADAPTER)
    before = {path: path.read_bytes() for path in (tmp_path / "run").rglob("*") if path.is_file()}

    def refuse(descriptor: int) -> None:
        raise OSError(number, "the disk says no")

    monkeypatch.setattr(tensorfile.os, "fsync", refuse)
    changed = Adapter({name: value + 1 for name, value in ADAPTER.tensors.items()}, ADAPTER.lora)
    for write in (
        lambda: folder.write_adapter(changed),
        lambda: folder.write_round(0, changed),
        lambda: folder.write_delta(0, "a", changed),
        lambda: folder.finished({}),
        lambda: folder.round_closed({"round": 1}),
    ):
        with pytest.raises(
            CheckpointError, match=r"can't be written: .*the disk says no; what stood there is intact"
        ):
            write()
    monkeypatch.undo()
    folder.close()
    after = {path: path.read_bytes() for path in (tmp_path / "run").rglob("*") if path.is_file()}
    assert {path: after[path] for path in before} == before
    assert not [path for path in after if path.suffix in (".safetensors", ".json") and path not in before]


def test_a_round_is_flushed_file_by_file_before_any_takes_its_place_and_its_folder_once(
    tmp_path, monkeypatch
):
    folder, events = started(tmp_path / "run"), []
    real_sync, real_replace = os.fsync, Path.replace

    def sync(descriptor: int) -> None:
        events.append("folder" if stat.S_ISDIR(os.fstat(descriptor).st_mode) else "file")
        real_sync(descriptor)

    def replace(self: Path, target: Path) -> Path:
        events.append(Path(target).name)
        return real_replace(self, target)

    monkeypatch.setattr(os, "fsync", sync)
    monkeypatch.setattr(Path, "replace", replace)
    folder.write_round(1, ADAPTER)
    monkeypatch.undo()
    folder.close()
    assert events[:2] == ["folder", "folder"]  # rounds/ and rounds/0001/ in the folders that they are made in
    assert events[2:] == ["file", "file", "broadcast.safetensors", "state.json", "folder"]


def test_a_parent_that_is_a_file(tmp_path):
    (tmp_path / "file").write_text("")
    with pytest.raises(CheckpointError, match="can't be written"):
        RunFolder(tmp_path / "file" / "run", CONFIG)


def _hold(path: str, ready, leave) -> None:
    with started(Path(path)):
        ready.set()
        leave.wait(30)


def test_the_lock_ends_with_its_process(tmp_path):
    context = multiprocessing.get_context("fork")
    ready, leave = context.Event(), context.Event()
    process = context.Process(target=_hold, args=(str(tmp_path / "run"), ready, leave))
    process.start()
    assert ready.wait(30)
    with pytest.raises(CheckpointError, match="in use"):
        RunFolder(tmp_path / "run", CONFIG)
    process.kill()
    process.join()
    RunFolder(tmp_path / "run", CONFIG).close()
    shutil.rmtree(tmp_path / "run")


scalars = st.one_of(st.integers(-(2**62), 2**62), st.floats(allow_nan=False), st.booleans(), st.text())
keys = st.from_regex(r"[a-z][a-z0-9-]{0,8}", fullmatch=True)


@settings(deadline=None, max_examples=50)
@given(st.dictionaries(keys, st.dictionaries(keys, scalars, max_size=4), max_size=4))
def test_any_run_config_survives_toml(tmp_path_factory, nested):
    flat = {f"{table}.{key}": value for table, values in nested.items() for key, value in values.items()}
    path = tmp_path_factory.mktemp("toml") / "config.toml"
    storage.write_text(path, storage.to_toml(flat))
    assert storage.read_toml(path) == flat


def test_half_a_character_is_written_and_read_again(tmp_path):
    path = tmp_path / "told.json"
    storage.write_json(path, {"label": "\ud800", "ü": "ä"})
    assert json.loads(path.read_bytes()) == {"label": "\ud800", "ü": "ä"} and "ü" in path.read_text()
