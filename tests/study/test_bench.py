import json

import pytest
import torch

from fedmerge.adapters import Adapter
from fedmerge.config import read_config
from fedmerge.engine.local import run_local
from fedmerge.errors import CheckpointError, ConfigError
from fedmerge.study.bench import Bench, scope_of
from fedmerge.study.memo import Memo
from fedmerge.study.recorded import open_run


@pytest.fixture
def config(tiny_flat):
    return read_config(tiny_flat(run__rounds=1, run__record=True, run__baselines=""))


def nudged(adapter, by):
    return Adapter({name: value + by for name, value in adapter.tensors.items()}, adapter.lora)


def test_scores_are_those_of_the_run(config):
    folder = run_local(config)
    result = json.loads((folder / "result.json").read_text())
    recorded = open_run(folder).round()
    with Bench(config) as bench:
        merged = fedavg_of(recorded)
        scores = bench.evaluate({"a": merged, "b": bench.initial}, ("validation", "test"))
        assert bench.silos == tuple(recorded.deltas) == tuple(recorded.weights)
    for name, candidate in (("a", "merged"), ("b", "base")):
        assert scores.row(name)["test"] == result["candidates"][candidate]["test"]


def fedavg_of(recorded):
    import fedmerge

    return fedmerge.merge(
        list(recorded.deltas.values()), received=recorded.received, rule="fedavg()", space="product()"
    ).adapter


def test_a_silo_trains_as_in_the_run(config):
    recorded = open_run(run_local(config)).round()
    with Bench(config) as bench:
        silo = bench.silos[0]
        delta = bench.train(silo, bench.initial)
    assert all(
        torch.equal(delta.tensors[name], value) for name, value in recorded.deltas[silo].tensors.items()
    )


def test_what_is_known_is_not_computed_again(config, tmp_path):
    memo = tmp_path / "memo"
    with Bench(config, memo) as bench:
        silo = bench.silos[0]
        candidates = {"base": bench.initial, "other": nudged(bench.initial, 0.01)}
        first = bench.evaluate(candidates, ("validation", "test"))
        delta = bench.train(silo, bench.initial)
        assert bench.executor.computed == len(bench.silos) + 1
    with Bench(config, memo) as bench:
        swapped = {"renamed": candidates["other"], "base": candidates["base"]}
        second = bench.evaluate(swapped, ("validation", "test"))
        again = bench.train(silo, bench.initial)
        assert (bench.executor.computed, bench.executor.recalled) == (0, len(bench.silos) + 1)
        # A new candidate beside a known one: only the new one travels, under its own name.
        third = bench.evaluate({"base": candidates["base"], "new": nudged(bench.initial, 0.02)}, ("test",))
    for silo_name in first.metrics:
        for key, value in first.metrics[silo_name].items():
            assert second.metrics[silo_name][key.replace("other/", "renamed/")] == value
        assert third.metrics[silo_name]["base/test/loss"] == first.metrics[silo_name]["base/test/loss"]
        assert third.metrics[silo_name]["new/test/loss"] != first.metrics[silo_name]["base/test/loss"]
    assert all(torch.equal(delta.tensors[name], value) for name, value in again.tensors.items())


def test_a_damaged_memo_is_computed_again(config, tmp_path, caplog):
    memo = tmp_path / "memo"
    with Bench(config, memo) as bench:
        scores = bench.evaluate({"base": bench.initial})
        delta = bench.train(bench.silos[0], bench.initial)
    (file,) = (memo / "answers").rglob("*.safetensors")
    data = bytearray(file.read_bytes())
    data[-1] ^= 1
    file.write_bytes(data)
    lines = (memo / "scores.jsonl").read_text()
    (memo / "scores.jsonl").write_text(lines[:-20])
    with Bench(config, memo) as bench:
        assert bench.evaluate({"base": bench.initial}).metrics == scores.metrics
        again = bench.train(bench.silos[0], bench.initial)
        assert bench.executor.computed == 2  # the last silo's scores, and the training
    assert all(torch.equal(delta.tensors[name], value) for name, value in again.tensors.items())
    assert "its hash differs" in caplog.text


def test_the_scope_of_a_memo_is_what_decides_answers(config, tiny_flat, tmp_path):
    def scope(**changes):
        return scope_of(read_config(tiny_flat(**({"run__rounds": 1} | changes))))

    same = scope()
    assert scope(strategy__rule="ties()", run__rounds=3, engine__workers=2) == same
    assert len({same, scope(train__steps=4), scope(run__seed=1), scope(lora__rank=3)}) == 4


def test_two_studies_do_not_share_a_memo_at_a_time(tmp_path):
    with Memo(tmp_path), pytest.raises(CheckpointError, match="in use"):
        Memo(tmp_path)


def test_recorded_deltas_are_held_against_their_hashes(config):
    folder = run_local(config)
    file = next((folder / "rounds" / "0001" / "deltas").glob("*.safetensors"))
    data = bytearray(file.read_bytes())
    data[-1] ^= 1
    file.write_bytes(data)
    with pytest.raises(
        CheckpointError, match=f"{file.name} is damaged: its hash is not the one in state.json"
    ):
        open_run(folder).round()


@pytest.mark.parametrize("broken", ["missing", "no config", "no deltas"])
def test_what_is_no_recorded_run_is_refused(broken, config, tiny_flat, tmp_path):
    if broken == "no deltas":
        folder = run_local(read_config(tiny_flat(run__rounds=1, run__baselines="")))
        match = "run.record = true"
    else:
        folder = tmp_path / "x"
        match = "no such folder" if broken == "missing" else "no config.toml"
        if broken == "no config":
            folder.mkdir()
    with pytest.raises(CheckpointError, match=match):
        open_run(folder)


def test_what_silos_would_complete_in_a_run_is_refused_and_whole_adapters_are_taken(tiny_flat):
    private = {"lora__private": "B", "strategy__space": "factors()"}
    with Bench(read_config(tiny_flat(**private))) as bench:
        whole = bench.initial
        shared = Adapter({name: t for name, t in whole.tensors.items() if "lora_A" in name}, whole.lora)
        assert bench.evaluate({"whole": whole}).metrics
        with pytest.raises(
            ConfigError, match=r"'shared' has no B: .* score the adapters in the run's personal/"
        ):
            bench.evaluate({"whole": whole, "shared": shared})
        with pytest.raises(ConfigError, match="'received' has no B"):
            bench.train(bench.silos[0], shared)
