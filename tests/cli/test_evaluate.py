import json

import pytest
import torch

import fedmerge as package
from fedmerge.cli.evaluate import result_of
from fedmerge.errors import AdapterMismatch, ConfigError
from fedmerge.study.admission import check_labels


def adapter(tensors: dict | None = None, **metadata: str) -> package.Adapter:
    return package.Adapter({"head.weight": torch.zeros(2, 3)} if tensors is None else tensors, None, metadata)


def test_what_the_silos_measured_as_a_result() -> None:
    metrics = {
        "b": {
            "base/test/accuracy": 0.5,
            "base/test/count": 30,
            "adapter/test/accuracy": 0.9,
            "adapter/test/count": 30,
        },
        "a": {
            "base/test/accuracy": 0.1,
            "base/test/count": 10,
            "adapter/test/accuracy": 0.7,
            "adapter/test/count": 10,
        },
    }
    result = result_of(metrics)
    assert (result["metric"], result["higher_is_better"], result["silos"]) == ("accuracy", True, ["a", "b"])
    assert result["candidates"]["base"] == {
        "validation": {}, "test": {"a": 0.1, "b": 0.5}, "mean": 0.3, "pooled": 0.4, "worst": 0.1,
    }  # fmt: skip


def test_nothing_to_score_on() -> None:
    with pytest.raises(ConfigError, match=r"data\.validation or data\.test above 0"):
        result_of({"a": {}})


def test_a_head_of_other_labels_is_refused() -> None:
    check_labels(adapter(labels='["up", "down"]'), ["up", "down"])
    check_labels(adapter(), ["up", "down"])
    check_labels(adapter({}, labels='["up"]'), ["down"])  # nothing trained on labels
    with pytest.raises(AdapterMismatch, match="trained on 2 labels"):
        check_labels(adapter(labels='["down", "up"]'), ["up", "down"])
    with pytest.raises(AdapterMismatch, match="not JSON"):
        check_labels(adapter(labels="["), [])


@pytest.fixture
def project(fedmerge, tmp_path, monkeypatch):
    """The project of `fedmerge init`, with its initial adapter on disk as `start`."""
    from fedmerge import config
    from fedmerge.silo.lora import initial_adapter

    fedmerge("init", tmp_path / "project")
    monkeypatch.chdir(tmp_path / "project")
    read = config.read_config(config.overlay(tmp_path / "project" / "simulation.toml"))
    start = initial_adapter(read.silo)
    package.save_adapter(start, "start", base_model="builtin")
    package.save_adapter(package.Adapter(start.tensors, start.lora, {"fingerprint": "0" * 64}), "foreign")


def test_the_initial_adapter_scores_as_the_base(fedmerge, project) -> None:
    result = fedmerge("evaluate", "start", "simulation.toml", "--json")
    assert result.exit_code == 0, result.output
    payload = json.loads(result.stdout)
    assert payload["silos"] == ["harbour", "kitchen"]
    assert payload["candidates"]["adapter"] == payload["candidates"]["base"]


def test_an_adapter_of_another_base_is_refused(fedmerge, project) -> None:
    result = fedmerge("evaluate", "foreign", "simulation.toml")
    assert result.exit_code == 1
    assert "trained on the base with fingerprint 000000000000" in result.stderr


def test_an_adapter_of_other_settings_is_refused(fedmerge, project) -> None:
    result = fedmerge("evaluate", "start", "simulation.toml", "--set", "lora.rank=8")
    assert result.exit_code == 1
    assert "the adapter's LoRA scaling is 2, this silo is set to 1" in result.stderr
    result = fedmerge("evaluate", "start", "simulation.toml", "--set", "lora.target-modules=q_proj")
    assert result.exit_code == 1
    assert "does not fit the base" in result.stderr
