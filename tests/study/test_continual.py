import json
import shutil

import numpy as np
import pytest
import torch

import fedmerge
from fedmerge.errors import AdapterMismatch, CheckpointError, ConfigError
from fedmerge.study.bench import Bench
from fedmerge.study.continual import Newcomer, add, remove
from fedmerge.study.recorded import open_run
from fedmerge.wire.files import load_adapter

from .test_one_shot import APART

TWO = {"run__rounds": 2}


def bits(folder):
    return (folder / "adapter" / "adapter_model.safetensors").read_bytes()


def same(one, two):
    return all(torch.equal(value, two.tensors[name]) for name, value in one.tensors.items())


@pytest.fixture
def foreign(made):
    return load_adapter(made("apart", **APART) / "adapter")


def test_a_silo_removed_from_one_round_leaves_the_run_that_never_had_it(made, tmp_path):
    """Bit for bit, in a rule that weighs by examples and in one that draws at random."""
    for rule in ("fedavg()", "dare_ties(density=0.5)"):
        keys = {"strategy__rule": rule, "strategy__weighting": "examples", "run__baselines": ""}
        whole, without = (
            made(f"whole {rule}", **keys),
            made(f"without {rule}", data__silos="birds, ships", **keys),
        )
        before = bits(whole)
        result = remove(whole, "rocks", tmp_path / rule)
        new, never = (open_run(path) for path in (tmp_path / rule, without))
        for name in ("broadcast.safetensors",):
            assert (new.path / "rounds/0001" / name).read_bytes() == (
                never.path / "rounds/0001" / name
            ).read_bytes()
        assert same(load_adapter(new.path / "adapter"), load_adapter(without / "adapter"))
        assert result["changed"]["exact"] is True
        assert "exact" in result["changed"]["notes"][0]
        assert bits(whole) == before


def test_every_silo_is_scored_before_and_after(made, tiny, tmp_path):
    result = remove(made("one"), "rocks", tmp_path / "new")
    changed = result["changed"]
    assert (changed["kind"], changed["silo"], changed["round"], changed["split"]) == (
        "remove",
        "rocks",
        1,
        "test",
    )
    assert changed["run"] == str(made("one"))
    assert set(changed["before"]["test"]) == {"birds", "rocks", "ships"} == set(changed["after"]["test"])
    with Bench(tiny(tmp_path / "unused")) as bench:
        scores = bench.evaluate(
            {
                "before": load_adapter(made("one") / "adapter"),
                "after": load_adapter(tmp_path / "new" / "adapter"),
            },
            ("test",),
        )
    for name in ("before", "after"):
        assert scores.row(name)["test"] == pytest.approx(changed[name]["test"], rel=1e-6)
    assert result["candidates"]["merged"] == changed["after"]
    assert list(result["candidates"]) == ["base", "alone/birds", "alone/rocks", "alone/ships", "merged"]
    assert json.loads((tmp_path / "new" / "result.json").read_text())["changed"] == json.loads(
        json.dumps(changed)
    )


def test_of_two_rounds_the_last_alone_is_merged_again_and_that_is_said(made, tmp_path):
    result = remove(made("two", **TWO), "rocks", tmp_path / "new")
    last = open_run(made("two", **TWO)).round()
    assert last.number == 2
    kept = {silo: delta for silo, delta in last.deltas.items() if silo != "rocks"}
    wanted = fedmerge.merge(
        list(kept.values()), received=last.received, space="product()", names=list(kept), round=2
    )
    assert same(open_run(tmp_path / "new").round().received, last.received)
    assert same(load_adapter(tmp_path / "new" / "adapter"), wanted.adapter)
    assert result["changed"]["exact"] is False
    assert "this is not unlearning" in result["changed"]["notes"][0]


def test_a_silo_that_is_subtracted(made, tmp_path):
    result = remove(made("one"), "rocks", tmp_path / "new", negate=0.5)
    last = open_run(made("one")).round()
    wanted = fedmerge.merge(
        list(last.deltas.values()),
        received=last.received,
        rule="task_arithmetic(scale=0.5, negate='rocks')",
        space="product()",
        names=list(last.deltas),
        round=1,
    )
    assert same(load_adapter(tmp_path / "new" / "adapter"), wanted.adapter)
    assert (result["changed"]["kind"], result["changed"]["exact"]) == ("negate", False)
    assert result["rule"] == "task_arithmetic(scale=0.5, negate=('rocks',))"
    forgotten = result["changed"]["after"]["test"]["rocks"]
    assert forgotten > result["changed"]["before"]["test"]["rocks"]  # bits per byte: lower is better
    again = remove(tmp_path / "new", "birds", tmp_path / "newer")
    assert again["rule"] == result["rule"]


def test_an_adapter_of_another_start_and_rank_joins(made, foreign, dense_products, tmp_path):
    """Against the mean of all true updates, in float64 and untruncated."""
    result = add(made("one"), Newcomer("site-c", foreign), tmp_path / "new", space="product(rank=9)")
    last = open_run(made("one")).round()
    trained = [
        fedmerge.Adapter(
            {name: value + delta.tensors[name] for name, value in last.received.tensors.items()},
            last.received.lora,
        )
        for delta in last.deltas.values()
    ]
    wanted = [dense_products(adapter) for adapter in (*trained, foreign)]
    for module, product in dense_products(load_adapter(tmp_path / "new" / "adapter")).items():
        mean = sum(products[module] for products in wanted) / 4
        np.testing.assert_allclose(product, mean, rtol=0, atol=1e-5 * np.abs(mean).max())
    assert list(result["candidates"])[-2:] == ["alone/site-c", "merged"]
    assert result["changed"]["notes"] == ["the run's adapters were padded from rank 2 to 3"]
    assert open_run(tmp_path / "new").round().weights == dict.fromkeys(
        ["birds", "rocks", "ships", "site-c"], 1.0
    )


def test_what_was_added_can_be_removed_again(made, foreign, tmp_path):
    add(made("one"), Newcomer("site-c", foreign, weight=5.0), tmp_path / "more", space="product(rank=2)")
    weights = open_run(tmp_path / "more").round().weights
    assert weights["site-c"] == pytest.approx(5 * weights["birds"])
    back = remove(tmp_path / "more", "site-c", tmp_path / "back")
    run = json.loads((made("one") / "result.json").read_text())
    assert back["candidates"]["merged"]["test"] == pytest.approx(
        run["candidates"]["merged"]["test"], rel=1e-5
    )


def test_in_factors_only_who_started_from_the_received_adapter_joins(made, foreign, tmp_path):
    keys = {"strategy__space": "factors()", "run__baselines": ""}
    run = made("factors", **keys)
    with pytest.raises(AdapterMismatch, match=r'round 1 received .* add it with --space "product\(\)"'):
        add(run, Newcomer("site-c", foreign), tmp_path / "new")
    assert not (tmp_path / "new").exists()
    friend = load_adapter(made("friend", **keys, train__learning_rate=3e-3) / "adapter")
    result = add(run, Newcomer("friend", friend), tmp_path / "new")
    assert result["space"] == "factors()"
    assert (
        add(run, Newcomer("site-c", foreign), tmp_path / "apart", space="product()")["space"] == "product()"
    )


def test_a_server_optimizer_goes_on_from_what_it_remembered(made, copied, tmp_path):
    keys = {**TWO, "strategy__server_optimizer": "momentum(beta=0.5)", "run__baselines": ""}
    run = made("momentum", **keys)
    folder = copied("momentum", **keys)
    again = add(run, Newcomer("twin", load_adapter(run / "adapter"), weight=1e-12), tmp_path / "new")
    assert again["changed"]["after"]["test"] == pytest.approx(again["changed"]["before"]["test"], rel=1e-4)
    assert (tmp_path / "new" / "rounds/0000/optimizer.safetensors").is_file()
    (folder / "rounds/0001/optimizer.safetensors").unlink()
    with pytest.raises(CheckpointError, match=r"optimizer\.safetensors is missing"):
        remove(folder, "rocks", tmp_path / "newer")


def test_statistics_that_were_kept_are_used(made, tmp_path):
    keys = {"strategy__rule": "fisher()", "strategy__space": "factors()", "run__baselines": ""}
    assert remove(made("fisher", **keys), "rocks", tmp_path / "new")["rule"] == "fisher()"
    friend = load_adapter(made("fisher", **keys) / "adapter")
    with pytest.raises(ConfigError, match="needs what silos measure"):
        add(made("fisher", **keys), Newcomer("friend", friend), tmp_path / "newer")


def test_bad_input_is_a_sentence(made, copied, foreign, tmp_path):
    run, new = made("one"), tmp_path / "new"
    with pytest.raises(ConfigError, match=r"no silo 'rokcs' in round 1; did you mean 'rocks'\?"):
        remove(run, "rokcs", new)
    with pytest.raises(ConfigError, match="has a silo 'rocks' already"):
        add(run, Newcomer("rocks", foreign), new)
    with pytest.raises(ConfigError, match="site-c: its weight is -1"):
        add(run, Newcomer("site-c", foreign, weight=-1.0), new)
    other = fedmerge.Adapter(foreign.tensors, foreign.lora, {"fingerprint": "0" * 64})
    with pytest.raises(AdapterMismatch, match="site-c: trained on the base with fingerprint 0000"):
        add(run, Newcomer("site-c", other), new)
    with pytest.raises(CheckpointError, match=r"run\.record = true"):
        remove(made("unrecorded", run__record=False, run__baselines=""), "rocks", new)
    remove(run, "rocks", tmp_path / "two")
    remove(tmp_path / "two", "birds", tmp_path / "last")
    with pytest.raises(ConfigError, match="'ships' is the only silo"):
        remove(tmp_path / "last", "ships", new)
    folder = copied("one")
    damaged = folder / "rounds/0001/deltas/rocks.safetensors"
    damaged.write_bytes(damaged.read_bytes()[:-1] + b"\x7f")
    with pytest.raises(CheckpointError, match=r"rocks\.safetensors is damaged"):
        remove(folder, "birds", new)
    shutil.rmtree(folder / "adapter")
    assert not new.exists()


@pytest.fixture
def dense_products():
    def products(adapter):
        found = {}
        for name, a in adapter.tensors.items():
            if name.endswith(".lora_A.weight"):
                module = name.removesuffix(".lora_A.weight")
                b = adapter.tensors[f"{module}.lora_B.weight"]
                found[module] = (adapter.lora.scaling * b.double() @ a.double()).numpy()
        return found

    return products
