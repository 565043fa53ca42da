import json
from dataclasses import replace

import pytest
import torch

from fedmerge import config
from fedmerge.adapters import Adapter
from fedmerge.cli import plan
from fedmerge.cli.base import Shape, shape_of
from fedmerge.silo.settings import BaseSettings, TrainSettings

SHAPE = Shape(
    parameters=1_000_000_000,
    hidden=2048,
    layers=16,
    heads=32,
    vocabulary=32_000,
    context=2048,
    bytes_each=2.0,
)


@pytest.mark.parametrize(
    ("train", "packed", "steps"),
    [
        (TrainSettings(steps=7), True, 7),
        (TrainSettings(epochs=2, batch_size=8), False, 26),
        (TrainSettings(epochs=1, batch_size=8, accumulate=4), False, 4),
        (TrainSettings(epochs=1), True, None),
    ],
)
def test_steps(train: TrainSettings, packed: bool, steps: int | None) -> None:
    assert plan.steps_of(100, train, packed=packed) == steps


@pytest.mark.parametrize(("encoding", "up"), [("exact", 3 * 26), ("bf16", 3 * 14), ("fp16", 3 * 14)])
def test_traffic(encoding: str, up: int) -> None:
    adapter = Adapter({"a": torch.zeros(2, 3), "b": torch.zeros(1, dtype=torch.bfloat16)})
    assert plan.traffic_of(adapter, 3, encoding) == plan.Traffic(2, 7, 26, 3 * 26, up)


def test_statistics_are_traffic_too() -> None:
    tensors = {"q.lora_A.weight": torch.zeros(2, 5), "q.lora_B.weight": torch.zeros(3, 2)}
    up = {
        name: plan.traffic_of(Adapter(tensors), 3, "bf16", frozenset({name} - {""})).up_bytes
        for name in ("", "fisher", "gram")
    }
    assert up == {"": 3 * 32, "fisher": 3 * (32 + 64), "gram": 3 * (32 + 16)}


def test_memory_grows_with_what_it_depends_on() -> None:
    def estimate(*sets: str, workers: int = 1) -> int:
        read = config.read_config(config.overlay(sets=["train.max-length=1024", *sets]))
        return plan.memory_estimate(SHAPE, read, 5_000_000, workers)

    plain = estimate()
    assert plain > 2_000_000_000
    assert estimate("train.batch-size=16") > plain
    assert plain < estimate(workers=2) < 2 * plain
    assert estimate("train.checkpointing=true") < plain
    assert estimate("train.autocast=bf16") < plain


def test_dtype_auto_takes_what_the_files_take(tiny_base) -> None:
    settings = BaseSettings(str(tiny_base), dtype="auto")
    shape = shape_of(settings, tiny_base)
    stored = sum(path.stat().st_size for path in tiny_base.glob("*.safetensors"))
    assert shape.parameters * shape.bytes_each == pytest.approx(stored)
    assert shape_of(replace(settings, dtype="bfloat16"), tiny_base).bytes_each == 2.0


@pytest.fixture
def project(fedmerge, tmp_path, monkeypatch) -> None:
    fedmerge("init", tmp_path / "project")
    monkeypatch.chdir(tmp_path / "project")


def test_a_dry_run_trains_nothing(fedmerge, project, tmp_path) -> None:
    result = fedmerge("simulate", "simulation.toml", "--dry-run")
    assert result.exit_code == 0, result.output
    for said in (
        "harbour",
        "kitchen",
        "Send ",
        "parameters",
        "builtin at",
        "memory",
        "disk",
        "alone, pooled",
    ):
        assert said in result.stdout
    assert not (tmp_path / "project" / "runs").exists()


def test_json_of_a_dry_run(fedmerge, project) -> None:
    payload = json.loads(fedmerge("simulate", "simulation.toml", "--dry-run", "--json").stdout)
    assert payload["dry_run"] is True
    assert [silo["name"] for silo in payload["silos"]] == ["harbour", "kitchen"]
    assert payload["traffic"]["down_bytes"] == 2 * payload["traffic"]["adapter_bytes"]
    assert payload["needs"]["workers"] >= 1


@pytest.mark.parametrize(("scoring", "times"), [("final", 0), ("silos", 3)])
def test_scores_of_shadows_are_traffic_too(fedmerge, project, scoring, times) -> None:
    chosen = (f"strategy.shadow-scoring={scoring}", "strategy.shadows=median(); ties()")
    sets = [part for setting in chosen for part in ("--set", setting)]
    result = fedmerge("simulate", "simulation.toml", *sets, "--dry-run")
    assert ("down for the scores of shadows" in result.stdout) == bool(times)
    payload = json.loads(fedmerge("simulate", "simulation.toml", *sets, "--dry-run", "--json").stdout)
    assert payload["traffic"]["shadow_bytes"] == times * payload["traffic"]["down_bytes"]


def test_completions_are_not_packed(fedmerge, project, tmp_path) -> None:
    rows = [{"silo": silo, "p": "one", "c": "two"} for silo in "ab" for _ in range(10)]
    (tmp_path / "rows.jsonl").write_text("\n".join(map(json.dumps, rows)))
    chosen = (
        f"data.source={tmp_path / 'rows.jsonl'}", "data.prompt=p", "data.completion=c", "data.validation=0.0",
        "data.test=0.0", "train.steps=0", "train.epochs=2", "train.batch-size=5",
    )  # fmt: skip
    sets = [part for setting in chosen for part in ("--set", setting)]
    result = fedmerge("simulate", "simulation.toml", *sets, "--dry-run", "--json")
    assert result.exit_code == 0, result.output
    assert [silo["steps"] for silo in json.loads(result.stdout)["silos"]] == [4, 4]


def test_labels_of_a_classification(fedmerge, project) -> None:
    """A trained head is as wide as the silos' labels together."""
    sets = [
        part
        for setting in (
            "task.kind=classification",
            "task.head=linear",
            "data.label=silo",
            "train.packing=false",
        )
        for part in ("--set", setting)
    ]
    result = fedmerge("simulate", "simulation.toml", *sets, "--dry-run", "--json")
    assert result.exit_code == 0, result.output
    without = json.loads(fedmerge("simulate", "simulation.toml", "--dry-run", "--json").stdout)
    extra = json.loads(result.stdout)["traffic"]["parameters"] - without["traffic"]["parameters"]
    assert extra == 2 * (256 + 1)


def test_what_silos_keep_does_not_travel_but_is_trained_and_stored(tmp_path) -> None:
    def made(*sets: str) -> plan.Plan:
        small = ["train.steps=1", "data.silos=xml, unittest", "strategy.space=factors()", "strategy.shadows="]
        return plan.make(
            config.read_config(config.overlay(sets=[*small, f"run.output={tmp_path}/run", *sets]))
        )

    everything, private = made(), made("lora.private=B")
    sent, kept = private.traffic, private.traffic.private_parameters
    assert kept > 0 and sent.parameters + kept == everything.traffic.parameters
    assert sent.up_bytes == everything.traffic.up_bytes - 2 * 4 * kept
    assert private.needs.memory_bytes == everything.needs.memory_bytes
    # Two silos: a file each in the round and in personal/, beside two of the shared part: twice two wholes.
    assert private.needs.disk_bytes == everything.needs.disk_bytes + 2 * everything.traffic.adapter_bytes
    assert f"  B stays: {kept:,} parameters" in private.shown()
    assert not any("stays" in str(line) for line in everything.shown())
