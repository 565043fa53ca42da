"""`fedmerge inspect` on a run and on adapters that were made in seconds."""

from __future__ import annotations

import json
import shutil
from dataclasses import dataclass
from pathlib import Path

import pytest

import fedmerge as package
from fedmerge.adapters import Adapter
from fedmerge.cli.inspect_tables import curve
from fedmerge.config import defaults, read_config
from fedmerge.server import storage

STEPS = 20


@dataclass(frozen=True)
class World:
    """A recorded run of three silos, its simulation, adapters of its base and (ships) of another one."""

    run: Path
    simulation: Path
    adapters: Path


@pytest.fixture(scope="module")
def world(
    tiny_base: Path, other_base: Path, tiny_rows: Path, tmp_path_factory: pytest.TempPathFactory
) -> World:
    from fedmerge.engine.local import run_local

    folder = tmp_path_factory.mktemp("world")
    flat = defaults() | {
        "run.name": "tiny", "run.rounds": 1, "run.record": True, "run.output": str(folder / "run"),
        "run.baselines": "", "strategy.shadows": "", "base.model": str(tiny_base),
        "data.source": str(tiny_rows), "data.silos": "", "data.partition": "by(column='topic')",
        "data.validation": 0.2, "lora.rank": 2, "lora.alpha": 4.0, "train.steps": STEPS,
        "train.batch-size": 4, "train.max-length": 32, "train.autocast": "none", "train.device": "cpu",
        "engine.workers": 1,
    }  # fmt: skip
    run_local(read_config(flat))
    simulation = folder / "simulation.toml"
    simulation.write_text(storage.to_toml(flat | {"run.output": ""}), encoding="utf-8")
    for silo, base in (("birds", tiny_base), ("rocks", tiny_base), ("ships", other_base)):
        adapter = trained(flat | {"base.model": str(base)}, silo)
        package.save_adapter(adapter, folder / "adapters" / silo)
    return World(folder / "run", simulation, folder / "adapters")


def trained(flat: dict, silo: str) -> Adapter:
    """A silo's adapter after some steps, with its base's fingerprint in the metadata."""
    from fedmerge.silo.data import load_silos
    from fedmerge.silo.lora import initial_adapter
    from fedmerge.silo.order import Order
    from fedmerge.silo.worker import Worker

    settings = read_config(flat).silo
    worker, start = Worker(settings, load_silos(settings.data)), initial_adapter(settings)
    delta = worker.train(start, Order(silo, round=1, steps=STEPS, splits=())).delta
    tensors = {name: start.tensors[name] + delta.tensors[name] for name in start.tensors}
    return Adapter(tensors, start.lora, {"fingerprint": worker.fingerprint})


def stripped(world: World, to: Path) -> list[Path]:
    """The three adapters without a word about their base."""
    for path in sorted(world.adapters.iterdir()):
        adapter = package.load_adapter(path)
        package.save_adapter(Adapter(adapter.tensors, adapter.lora), to / path.name)
    return sorted(to.iterdir())


def refused(result, *words: str) -> None:
    assert result.exit_code == 1, result.output
    assert "Traceback" not in result.stderr
    sentence = result.stderr.splitlines()[-1]
    for word in words:
        assert word in sentence


def test_a_run_is_inspected(fedmerge, world: World) -> None:
    result = fedmerge("inspect", world.run, "--points", 3, "--plane", "birds,ships", "--json")
    assert result.exit_code == 0, result.output
    told = json.loads(result.stdout)
    assert told.pop("file") == str(world.run / "geometry.json")
    assert json.loads((world.run / "geometry.json").read_text()) == told
    assert told["names"] == ["birds", "rocks", "ships"]
    assert (told["in_products"], told["start"], told["merge"]) == (True, "base", "fedavg() in product()")
    layer = told["layers"]["base_model.model.model.layers.0.self_attn.q_proj"]
    assert {key: len(values) for key, values in layer.items()} == dict.fromkeys(layer, 3)
    assert layer["relative"][0] > 0
    assert set(told["conflict"]) >= {"before", "after", "density"}
    assert told["plane"]["corners"] == ["base", "birds", "ships"]
    assert set(told["plane"]["points"]) == {"base", "birds", "rocks", "ships", "merge"}
    for line in told["lines"]:
        assert len(line["at"]) == len(line["loss"]) == len(line["score"])
        assert line["metric"] == "bits_per_byte"
    # what the ends of a line score is what the run's own result says
    merge = told["lines"][-1]
    kept = json.loads((world.run / "result.json").read_text())["candidates"]
    for t, name in ((0, "base"), (1, "merged")):
        validation = kept[name]["validation"].values()
        assert merge["score"][merge["at"].index(t)] == pytest.approx(sum(validation) / 3, rel=1e-5)
    text = " ".join(told["sentences"])
    assert "Each was trained from this base" in text
    assert "One basin" in text


def test_a_person_is_shown_the_same(fedmerge, world: World) -> None:
    result = fedmerge("inspect", world.run, "--points", 3, "--plane", "birds,ships")
    assert result.exit_code == 0, result.output
    for words in (
        "loss falls by",
        "cosines of the updates",
        "in conflict",
        "barrier",
        "the plane through",
        "- One basin",
    ):
        assert words in result.stdout


def test_deltas_alone(fedmerge, world: World, tmp_path: Path) -> None:
    out = tmp_path / "figures.json"
    result = fedmerge("inspect", world.run, "--no-scores", "-o", out)
    assert result.exit_code == 0, result.output
    told = json.loads(out.read_text())
    assert (told["lines"], told["plane"]) == ([], None)
    assert "fingerprint of one base" in told["sentences"][0]


def test_a_wrong_base_is_found_out_with_the_metadata_stripped(fedmerge, world: World, tmp_path: Path) -> None:
    given = stripped(world, tmp_path)
    result = fedmerge(
        "inspect", *given, "--simulation", world.simulation, "--points", 3, "--no-plane", "--json"
    )
    assert result.exit_code == 0, result.output
    sentences = json.loads(result.stdout)["sentences"]
    assert sentences[0].startswith("ships was not trained from this base")
    assert sentences[1].startswith("Each of the other 2 was trained from this base")


def test_a_wrong_base_is_refused_where_the_metadata_tell(fedmerge, world: World, tmp_path: Path) -> None:
    birds, rocks, ships = sorted(world.adapters.iterdir())
    refused(fedmerge("inspect", birds, ships), "different bases", "birds on", "ships on")
    refused(fedmerge("inspect", ships, "--simulation", world.simulation), "ships was trained on the base")
    result = fedmerge("inspect", birds, rocks, "--json")
    assert "All carry the fingerprint of one base" in json.loads(result.stdout)["sentences"][0]


def test_one_adapter_and_its_base(fedmerge, world: World, tiny_base: Path) -> None:
    result = fedmerge("inspect", world.adapters / "birds", "--base", tiny_base, "--json")
    assert result.exit_code == 0, result.output
    told = json.loads(result.stdout)
    assert told["relative"][0] > 0
    assert (told["cosines"], told["conflict"], told["file"]) == ([[1.0]], None, None)
    scored = fedmerge("inspect", world.adapters / "birds", "--simulation", world.simulation)
    assert scored.exit_code == 0, scored.output
    assert "birds was trained from this base" in scored.stdout


def test_what_can_not_be_inspected(fedmerge, world: World, tmp_path: Path) -> None:
    birds = world.adapters / "birds"
    refused(fedmerge("inspect", world.run, birds), "is a run")
    refused(fedmerge("inspect", birds, birds), "given twice")
    refused(fedmerge("inspect", world.run, "--plane", "birds,rock"), "no silo 'rock'", "did you mean 'rocks'")
    refused(fedmerge("inspect", world.run, "--plane", "birds"), "two silos with a comma")
    refused(
        fedmerge("inspect", world.run, "--plane", "birds,ships", "--no-plane"), "contradicted by --no-plane"
    )
    refused(fedmerge("inspect", birds, "--round", 7), "--round is for a run")
    refused(fedmerge("inspect", world.run, "--round", 7), "round 7 has no deltas")
    refused(fedmerge("inspect", world.run, "--base", "builtin"), "--base is not for a run")
    refused(fedmerge("inspect", world.run, "--density", 20), "density is 20")
    refused(fedmerge("inspect", birds, "--set", "run.seed=1"), "--set is for a simulation")
    refused(fedmerge("inspect", birds, "--points", 9, "--no-plane"), "--points, --no-plane are about losses")
    refused(fedmerge("inspect", world.run, "--no-scores", "--points", 9), "--no-scores leaves them out")
    refused(fedmerge("inspect", world.run, "--density", 0), "density is 0")
    refused(
        fedmerge("inspect", birds, "--base", "builtin", "--simulation", world.simulation),
        "names the base itself",
    )
    refused(fedmerge("inspect", tmp_path / "nowhere"), "nowhere")


def test_a_run_without_deltas_is_refused(fedmerge, world: World, tmp_path: Path) -> None:
    shutil.copytree(world.run, tmp_path / "bare")
    shutil.rmtree(tmp_path / "bare" / "rounds" / "0001" / "deltas")
    refused(fedmerge("inspect", tmp_path / "bare"), "kept no deltas", "run.record = true")


def test_adapters_that_do_not_belong_together_are_refused(fedmerge, world: World, tmp_path: Path) -> None:
    adapter = package.load_adapter(world.adapters / "birds")
    fewer = {name: tensor for name, tensor in adapter.tensors.items() if "layers.0" in name}
    package.save_adapter(Adapter(fewer, adapter.lora), tmp_path / "fewer")
    refused(fedmerge("inspect", world.adapters / "birds", tmp_path / "fewer"), "fewer lacks", "of birds")
    alone = fedmerge("inspect", tmp_path / "fewer", "--simulation", world.simulation)
    refused(alone, "fewer lacks", "of the simulation's adapter")


def test_whole_models_by_their_distance(
    fedmerge, world: World, tiny_base: Path, other_base: Path, tmp_path: Path
) -> None:
    tuned = nudged(tiny_base, tmp_path / "tuned")
    result = fedmerge("inspect", tuned, other_base, "--base", tiny_base, "--json")
    assert result.exit_code == 0, result.output
    told = json.loads(result.stdout)
    assert told["names"] == ["tuned", other_base.name]
    assert told["relative"] == pytest.approx([0.01, 2**0.5], rel=0.05)
    assert f"{other_base.name} lies 14" in " ".join(told["sentences"])
    assert "tuned lies" not in " ".join(told["sentences"])
    assert (told["conflict"], told["lines"], told["plane"]) == (None, [], None)
    alone = fedmerge("inspect", tuned, "--base", tiny_base)
    assert "tuned is a fine-tune of this base" in alone.stdout
    refused(fedmerge("inspect", tuned), "give --base")
    refused(fedmerge("inspect", tuned, "--base", tiny_base, "--density", 0.1), "not for whole models")
    refused(fedmerge("inspect", tuned, world.adapters / "birds"), "not compared with each other")


def nudged(base: Path, to: Path) -> Path:
    """The base with a hundredth of noise: a fine-tune, as far as distances go."""
    import torch

    from fedmerge.wire.tensorfile import read_tensors, write_tensors

    shutil.copytree(base, to)
    tensors, _ = read_tensors(base / "model.safetensors")
    draw = torch.Generator().manual_seed(0)
    for name, tensor in tensors.items():
        noise = torch.randn(tensor.shape, generator=draw)
        tensors[name] = tensor + 0.01 * noise * tensor.norm() / noise.norm()
    write_tensors(to / "model.safetensors", tensors)
    return to


def test_a_curve_of_no_values() -> None:
    assert curve([float("nan")]) == "?"
    assert curve([2.0, 2.0]) == "▁▁"
