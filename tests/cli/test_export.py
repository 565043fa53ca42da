"""`fedmerge export`: an adapter with its card, or folded into its base."""

from __future__ import annotations

import json
from pathlib import Path

import pytest
import torch

import fedmerge as package
from fedmerge.silo.base import BUILTIN
from fedmerge.silo.fingerprint import fingerprint_of

MODULE = "base_model.model.model.layers.0.self_attn.q_proj."


@pytest.fixture
def adapter() -> package.Adapter:
    draw = torch.Generator().manual_seed(0)
    tensors = {
        MODULE + "lora_A.weight": torch.randn(2, 256, generator=draw),
        MODULE + "lora_B.weight": torch.randn(256, 2, generator=draw),
    }
    metadata = {"base_model": "builtin", "fingerprint": fingerprint_of(BUILTIN), "task_type": "CAUSAL_LM"}
    return package.Adapter(tensors, package.Lora(2, 4.0), metadata)


@pytest.fixture
def run_folder(tmp_path: Path, adapter: package.Adapter) -> Path:
    """What a run leaves behind, as far as an export reads it."""
    folder = tmp_path / "runs" / "demo"
    package.save_adapter(adapter, folder / "adapter")
    (folder / "config.toml").write_text(
        '[run]\nname = "demo"\nrounds = 3\nseed = 7\n'
        '[strategy]\nrule = "ties(density=0.2)"\nspace = "product()"\n'
    )
    score = {"test": {"a": 1.5, "b": 1.25}, "mean": 1.375, "worst": 1.5}
    result = {
        "metric": "bits_per_byte", "higher_is_better": False, "silos": ["a", "b"],
        "candidates": {"base": score, "merged": score}, "kept": "merged",
    }  # fmt: skip
    (folder / "result.json").write_text(json.dumps(result))
    return folder


def test_a_run_with_its_rule_rounds_silos_and_scores(fedmerge, run_folder, tmp_path, adapter) -> None:
    out = tmp_path / "out"
    result = fedmerge("export", run_folder, "-o", out)
    assert result.exit_code == 0, result.output
    found = package.load_adapter(out)
    assert all(torch.equal(found.tensors[name], tensor) for name, tensor in adapter.tensors.items())
    assert found.metadata["fingerprint"] == adapter.metadata["fingerprint"]
    card = (out / "README.md").read_text()
    for line in (
        "# demo: 2 silos merged by fedmerge", "- rule: `ties(density=0.2)`", "- rounds: `3`", "- seed: `7`",
        "- LoRA: `rank 2, alpha 4`", 'library_name: "peft"',
        "| merged (kept) | 1.3750 | 1.5000 | 1.5000 | 1.2500 |",
    ):  # fmt: skip
        assert line in card, card
    assert str(tmp_path) not in card


def test_an_adapter_that_no_run_left(fedmerge, tmp_path, adapter) -> None:
    package.save_adapter(adapter, tmp_path / "site")
    result = fedmerge("export", tmp_path / "site", "--base", "org/base", "-o", tmp_path / "out", "--json")
    assert json.loads(result.stdout)["base_model"] == "org/base"
    card = (tmp_path / "out" / "README.md").read_text()
    assert "# site: a LoRA adapter" in card
    assert '- "org/base"' in card


def test_a_run_folded_into_its_base_loads_in_transformers(fedmerge, run_folder, tmp_path, adapter) -> None:
    from transformers import AutoModelForCausalLM

    out = tmp_path / "out"
    result = fedmerge("export", run_folder, "--fold", "-o", out)
    assert result.exit_code == 0, result.output
    found, told = AutoModelForCausalLM.from_pretrained(out, output_loading_info=True)
    assert not told["missing_keys"]
    name = "model.layers.0.self_attn.q_proj.weight"
    base = AutoModelForCausalLM.from_pretrained(BUILTIN).state_dict()[name]
    a, b = (adapter.tensors[MODULE + part].double() for part in ("lora_A.weight", "lora_B.weight"))
    assert torch.equal(found.state_dict()[name], (base.double() + 2.0 * b @ a).to(base.dtype))
    card = (out / "README.md").read_text()
    assert "folded into its base" in card
    assert 'library_name: "transformers"' in card


def test_what_can_not_be_exported(fedmerge, run_folder, tmp_path, adapter) -> None:
    again = fedmerge("export", run_folder, "-o", run_folder / "adapter")
    assert "there is something already" in again.stderr
    other = package.Adapter(adapter.tensors, adapter.lora, adapter.metadata | {"fingerprint": "0" * 64})
    package.save_adapter(other, tmp_path / "other")
    wrong = fedmerge("export", tmp_path / "other", "--fold", "-o", tmp_path / "out")
    assert "was trained on the base with fingerprint 000000000000" in wrong.stderr
    package.save_adapter(package.Adapter(adapter.tensors, adapter.lora), tmp_path / "nameless")
    nameless = fedmerge("export", tmp_path / "nameless", "--fold", "-o", tmp_path / "out")
    assert "does not name its base: give --base" in nameless.stderr
    (run_folder / "result.json").write_text("[]")
    broken = fedmerge("export", run_folder, "-o", tmp_path / "out")
    assert "holds a list, expected a table" in broken.stderr
    (tmp_path / "open").mkdir()
    (tmp_path / "open" / "config.toml").write_text("")
    unfinished = fedmerge("export", tmp_path / "open", "-o", tmp_path / "out")
    assert "is a run without an adapter" in unfinished.stderr
    assert not (tmp_path / "out").exists()
