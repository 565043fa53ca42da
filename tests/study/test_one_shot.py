import json
import math
from dataclasses import replace

import pytest
import torch

from fedmerge.adapters import Lora
from fedmerge.adapters.foreign import fitted
from fedmerge.errors import AdapterMismatch, ConfigError, WireError
from fedmerge.study.bench import Bench
from fedmerge.study.one_shot import Handed, one_shot
from fedmerge.study.recorded import open_run
from fedmerge.wire.files import load_adapter

APART = {"run__seed": 3, "data__silos": "birds", "lora__rank": 3, "lora__alpha": 6.0}


@pytest.fixture
def alone(made):
    """What each silo of the run of one round trained, as adapters."""
    recorded = open_run(made("one")).round()
    return {
        silo: replace(
            recorded.received,
            tensors={name: value + delta.tensors[name] for name, value in recorded.received.tensors.items()},
        )
        for silo, delta in recorded.deltas.items()
    }


def numbers(row):
    return [row["mean"], row["worst"], *row["test"].values()]


def test_adapters_of_one_start_make_the_run_that_the_silos_would_have_made(made, alone, tiny, tmp_path):
    result = one_shot(tiny(tmp_path / "shot", run__rounds=3), Handed(alone))
    run = json.loads((made("one") / "result.json").read_text())
    assert list(result["candidates"]) == ["base", "alone/birds", "alone/rocks", "alone/ships", "merged"]
    assert set(run) <= set(result)
    for name, row in result["candidates"].items():
        assert numbers(row) == pytest.approx(numbers(run["candidates"][name]), rel=1e-4)
    assert result["one_shot"]["received"] == "initial"
    assert result["one_shot"]["without_rows"] == []
    assert result["silos"] == ["birds", "rocks", "ships"]


def test_the_folder_is_that_of_a_run_with_one_round(alone, tiny, tmp_path):
    config = tiny(tmp_path / "shot")
    result = one_shot(config, Handed(alone))
    folder = config.folder
    assert json.loads((folder / "result.json").read_text()) == json.loads(json.dumps(result))
    assert len((folder / "metrics.jsonl").read_text().splitlines()) == 1
    assert (folder / "environment.json").is_file()
    recorded = open_run(folder).round()
    assert (recorded.number, list(recorded.deltas)) == (1, ["birds", "rocks", "ships"])
    adapter = load_adapter(folder / "adapter")
    assert adapter.metadata["rule"] == "fedavg()"
    assert adapter.lora.rank == 2


def test_adapters_of_other_starts_and_ranks_merge_in_products(made, alone, tiny, tmp_path):
    foreign = load_adapter(made("apart", **APART) / "adapter")
    shadows = "fedavg() @ factors(); task_arithmetic(scale=0.3) @ product()"
    config = tiny(tmp_path / "shot", strategy__shadows=shadows)
    result = one_shot(config, Handed({"birds": alone["birds"], "site-c": foreign}))
    about = result["one_shot"]
    assert about["received"] == "zero"
    assert about["without_rows"] == ["site-c"]
    assert about["notes"] == [
        "ranks 2, 3: all were padded to 3",
        "shadows in factors() were left out: these adapters have no factors in common",
    ]
    assert list(result["candidates"])[:4] == [
        "base",
        "alone/birds",
        "alone/site-c",
        "shadow/task_arithmetic(scale=0.3) @ product()",
    ]
    recorded = open_run(config.folder).round()
    assert recorded.received.lora.rank == 3
    assert not any(value.any() for value in recorded.received.tensors.values())
    expected = fitted(foreign, recorded.received.lora).tensors
    assert all(
        torch.equal(value, expected[name]) for name, value in recorded.deltas["site-c"].tensors.items()
    )
    with Bench(config) as bench:
        scores = bench.evaluate({"merged": load_adapter(config.folder / "adapter"), "c": foreign}, ("test",))
    assert scores.row("c")["test"] == pytest.approx(result["candidates"]["alone/site-c"]["test"], rel=1e-5)
    assert scores.row("merged")["test"] == pytest.approx(result["candidates"]["merged"]["test"], rel=1e-6)


def test_factors_without_a_common_start_are_refused(made, alone, tiny, tmp_path):
    foreign = load_adapter(made("apart", **APART) / "adapter")
    config = tiny(tmp_path / "shot", strategy__space="factors()")
    with pytest.raises(
        AdapterMismatch, match=r'trained from other starts .* set strategy\.space to "product\(\)"'
    ):
        one_shot(config, Handed({"birds": alone["birds"], "site-c": foreign}))
    assert one_shot(config, Handed(alone))["space"] == "factors()"


def test_weights_are_examples_by_name_or_what_is_given(alone, tiny, tmp_path):
    config = tiny(tmp_path / "a", strategy__weighting="examples", run__baselines="")
    told = one_shot(config, Handed(alone))
    assert told["one_shot"]["counts"] == {"birds": 19.0, "rocks": 16.0, "ships": 19.0}
    given = Handed(alone, {"birds": 3.0, "rocks": 1.0, "ships": 2.0})
    weighed = one_shot(tiny(tmp_path / "b"), given)
    assert [entry["weight"] for entry in weighed["rounds"][0]["admitted"].values()] == [1.5, 0.5, 1.0]
    strangers = Handed({f"site {name}": adapter for name, adapter in alone.items()})
    unknown = one_shot(tiny(tmp_path / "c", strategy__weighting="examples"), strangers)
    assert "all weigh alike" in unknown["one_shot"]["notes"][0]
    assert set(unknown["one_shot"]["counts"].values()) == {1.0}


def test_no_folder_is_named_alike_for_other_adapters(alone, tiny, tmp_path, monkeypatch):
    monkeypatch.chdir(tmp_path)
    first = one_shot(tiny(""), Handed({"birds": alone["birds"], "rocks": alone["rocks"]}))
    second = one_shot(tiny(""), Handed({"birds": alone["birds"], "rocks": alone["ships"]}))
    assert first["adapter"].startswith(str(tmp_path / "runs" / "tiny-one-shot-fedavg-"))
    assert first["adapter"] != second["adapter"]


@pytest.mark.parametrize("weight", [0.0, -1.0, math.nan, math.inf])
def test_weights_that_are_none_are_refused(alone, weight):
    with pytest.raises(ConfigError, match="birds: its weight is"):
        Handed(alone, {"birds": weight, "rocks": 1.0, "ships": 1.0})


def test_what_can_not_be_merged_here_is_refused_by_name(alone, tiny, tmp_path):
    config = tiny(tmp_path / "shot")
    with pytest.raises(ConfigError, match="no adapter was given"):
        Handed({})
    with pytest.raises(ConfigError, match="site-a: the adapter has no LoRA settings"):
        Handed({"site-a": replace(alone["birds"], lora=None)})
    with pytest.raises(WireError, match="silo name"):
        Handed({"a\nb": alone["birds"]})
    other = replace(alone["birds"], metadata={"fingerprint": "0" * 64})
    with pytest.raises(AdapterMismatch, match="site-a: trained on the base with fingerprint 000000000000"):
        one_shot(config, Handed({"site-a": other}))
    head = replace(
        alone["birds"],
        tensors=alone["birds"].tensors | {"head.weight": torch.zeros(2, 16)},
        metadata={"labels": '["up", "down"]'},
    )
    with pytest.raises(AdapterMismatch, match="site-a: its head was trained on 2 labels"):
        one_shot(config, Handed({"site-a": head}))
    fewer = dict(list(alone["birds"].tensors.items())[2:])
    with pytest.raises(AdapterMismatch, match="site-a lacks"):
        one_shot(config, Handed({"site-a": replace(alone["birds"], tensors=fewer)}))
    with pytest.raises(ConfigError, match="needs what silos measure"):
        one_shot(
            tiny(tmp_path / "fisher", strategy__rule="fisher()", strategy__space="factors()"), Handed(alone)
        )
    assert not (tmp_path / "shot" / "rounds").exists()


def test_scalings_that_differ_are_fitted(alone, tiny, tmp_path):
    other = {name: fitted(adapter, Lora(2, 2.0)) for name, adapter in alone.items()}
    one = one_shot(tiny(tmp_path / "a"), Handed(alone))
    two = one_shot(tiny(tmp_path / "b"), Handed(other))
    assert two["one_shot"]["received"] == "zero"
    assert numbers(two["candidates"]["merged"]) == pytest.approx(
        numbers(one["candidates"]["merged"]), rel=1e-5
    )
