import json
from collections.abc import Callable
from pathlib import Path

import pytest
import torch

import fedmerge as package
from fedmerge.cli.merge import check_heads, common_base, parse_weights
from fedmerge.errors import AdapterMismatch, ConfigError

MODULE = "base_model.model.layers.0.q_proj."


@pytest.fixture
def adapter(tmp_path: Path) -> Callable[..., Path]:
    """Writes an adapter of one LoRA pair, all of whose values are `value`."""

    def write(name: str, value: float, **metadata: str) -> Path:
        tensors = {
            MODULE + "lora_A.weight": torch.full((2, 4), value),
            MODULE + "lora_B.weight": torch.full((4, 2), value),
        }
        lora = package.Lora(rank=2, alpha=4.0, target_modules=("q_proj",))
        package.save_adapter(package.Adapter(tensors, lora, metadata), tmp_path / name)
        return tmp_path / name

    return write


def test_a_weighted_mean_is_written_as_an_adapter(fedmerge, adapter, tmp_path) -> None:
    out = tmp_path / "out"
    arguments = ("--weights", "2,1", "--space", "factors()", "-o", out)
    result = fedmerge("merge", adapter("a", 1.0), adapter("b", 4.0), *arguments)
    assert result.exit_code == 0, result.output
    assert str(out) in result.stdout
    merged = package.load_adapter(out)
    assert torch.equal(merged.tensors[MODULE + "lora_A.weight"], torch.full((2, 4), 2.0))
    assert merged.lora is not None
    assert (merged.lora.rank, merged.lora.alpha) == (2, 4.0)


def test_rule_space_and_what_is_known_of_the_base_go_along(fedmerge, adapter, tmp_path) -> None:
    known = {"base_model": "org/base", "fingerprint": "f" * 64, "round": "3", "rule": "fedavg()"}
    arguments = ("--rule", "ties(density=0.5)", "--space", "product()", "-o", tmp_path / "out", "--json")
    result = fedmerge("merge", adapter("a", 1.0, **known), adapter("b", 2.0, **known), *arguments)
    payload = json.loads(result.stdout)
    assert payload["base_model"] == "org/base"
    assert payload["report"]["rule"] == "ties(density=0.5)"
    assert payload["report"]["discarded_total"] < 1e-6
    metadata = package.load_adapter(tmp_path / "out").metadata
    assert metadata["fingerprint"] == "f" * 64
    assert metadata["rule"] == "ties(density=0.5)"
    assert "round" not in metadata


@pytest.mark.parametrize(
    ("arguments", "said"),
    [
        (["--rule", "tise()"], "did you mean 'ties'"),
        (["--space", "nowhere()"], "nowhere"),
        (["--weights", "1"], "1 weight for 2 adapters"),
        (["--weights", "1,x"], "expected numbers"),
        (["--weights", "1,-1"], "-1"),
    ],
)
def test_bad_input_is_a_sentence_and_writes_nothing(
    fedmerge, adapter, tmp_path, arguments: list[str], said: str
) -> None:
    result = fedmerge("merge", adapter("a", 1.0), adapter("b", 2.0), "-o", tmp_path / "out", *arguments)
    assert result.exit_code == 1
    assert said in result.stderr
    assert "unforeseen" not in result.stderr
    assert not (tmp_path / "out").exists()


def test_one_adapter_is_too_few(fedmerge, adapter, tmp_path) -> None:
    result = fedmerge("merge", adapter("a", 1.0), "-o", tmp_path / "out")
    assert "1 adapter given, expected two or more" in result.stderr


def test_nothing_is_written_over(fedmerge, adapter) -> None:
    result = fedmerge("merge", adapter("a", 1.0), adapter("b", 2.0), "-o", adapter("c", 3.0))
    assert result.exit_code == 1
    assert "expected a new or an empty folder" in result.stderr


def test_different_bases_are_refused(fedmerge, adapter, tmp_path) -> None:
    a, b = adapter("a", 1.0, base_model="org/one"), adapter("b", 1.0, base_model="org/two")
    result = fedmerge("merge", a, b, "-o", tmp_path / "out")
    assert result.exit_code == 1
    assert "different bases" in result.stderr
    assert fedmerge("merge", a, b, "-o", tmp_path / "out", "--base", "org/one").exit_code == 0
    assert package.load_adapter(tmp_path / "out").metadata["base_model"] == "org/one"


def test_no_name_makes_different_fingerprints_equal() -> None:
    one, two = (package.Adapter({}, None, {"fingerprint": text * 64}) for text in "ab")
    with pytest.raises(AdapterMismatch, match="different bases"):
        common_base(["one", "two"], [one, two], "org/base")


def test_an_adapter_that_names_no_base_goes_along() -> None:
    one, two = package.Adapter({}, None, {"base_model": "org/base"}), package.Adapter({})
    assert common_base(["one", "two"], [one, two]) == "org/base"
    assert common_base(["two"], [two]) == ""


def test_heads_of_other_labels_are_refused() -> None:
    def headed(labels: str) -> package.Adapter:
        return package.Adapter({"head.weight": torch.zeros(2, 3)}, None, {"labels": labels})

    one, unknown = headed('["up", "down"]'), package.Adapter({"head.weight": torch.zeros(2, 3)})
    headless = package.Adapter({}, None, {"labels": '["left", "right"]'})
    check_heads(["a", "b", "c"], [one, unknown, headless])
    with pytest.raises(AdapterMismatch, match=r"a on 2 \('up' first\), b on 2 \('down' first\)"):
        check_heads(["a", "b"], [one, headed('["down", "up"]')])


def test_weights() -> None:
    assert parse_weights(" ", 3) is None
    assert parse_weights("1, 2.5", 2) == [1.0, 2.5]
    with pytest.raises(ConfigError, match="one for each"):
        parse_weights("1,2,3", 2)


def pair_of(rank: int, seed: int, inputs: int = 12, outputs: int = 10) -> dict[str, torch.Tensor]:
    draw = torch.Generator().manual_seed(seed)
    return {
        MODULE + "lora_A.weight": torch.randn(rank, inputs, generator=draw),
        MODULE + "lora_B.weight": torch.randn(outputs, rank, generator=draw),
    }


def product(adapter: package.Adapter) -> torch.Tensor:
    assert adapter.lora is not None
    a, b = (adapter.tensors[MODULE + name].double() for name in ("lora_A.weight", "lora_B.weight"))
    return adapter.lora.scaling * b @ a


def test_adapters_of_mixed_ranks_merge_by_their_updates_and_the_energy_left_out_is_told(
    fedmerge, tmp_path
) -> None:
    loras = {"a": package.Lora(2, 4.0), "b": package.Lora(3, 3.0, rslora=True)}
    for seed, (name, lora) in enumerate(loras.items()):
        package.save_adapter(package.Adapter(pair_of(lora.rank, seed), lora), tmp_path / name)
    folders = [tmp_path / name for name in loras]
    result = fedmerge("merge", *folders, "-o", tmp_path / "out")
    assert result.exit_code == 0, result.output
    assert "rank 3 leaves out" in result.stdout
    assert "--space 'product(rank=5)' keeps all of a mean" in result.stdout
    whole = fedmerge("merge", *folders, "--space", "product(rank=5)", "-o", tmp_path / "whole", "--json")
    payload = json.loads(whole.stdout)
    assert payload["rank"] == 5
    assert payload["report"]["discarded_total"] < 1e-9
    assert len(payload["geometry"]["cosines"]) == 2
    mean = (product(package.load_adapter(folders[0])) + product(package.load_adapter(folders[1]))) / 2
    torch.testing.assert_close(product(package.load_adapter(tmp_path / "whole")), mean, rtol=1e-5, atol=1e-5)


def test_plain_peft_loads_the_result(fedmerge, tmp_path) -> None:
    from peft import PeftModel
    from transformers import LlamaConfig, LlamaForCausalLM

    config = LlamaConfig(
        vocab_size=32, hidden_size=16, intermediate_size=32, num_hidden_layers=1, num_attention_heads=2,
        num_key_value_heads=2,
    )  # fmt: skip
    module = "base_model.model.model.layers.0.self_attn.q_proj."
    for seed, name in enumerate("ab"):
        tensors = {key.replace(MODULE, module): tensor for key, tensor in pair_of(2, seed, 16, 16).items()}
        package.save_adapter(package.Adapter(tensors, package.Lora(2, 4.0)), tmp_path / name)
    assert fedmerge("merge", tmp_path / "a", tmp_path / "b", "-o", tmp_path / "out").exit_code == 0
    model = PeftModel.from_pretrained(LlamaForCausalLM(config), tmp_path / "out")
    loaded = model.state_dict()[module + "lora_A.default.weight"]
    assert torch.equal(loaded, package.load_adapter(tmp_path / "out").tensors[module + "lora_A.weight"])


def test_a_model_card_lies_beside(fedmerge, adapter, tmp_path) -> None:
    known = {"base_model": "org/base"}
    arguments = ("--weights", "2,1", "--seed", "3", "-o", tmp_path / "out")
    fedmerge("merge", adapter("a", 1.0, **known), adapter("b", 2.0, **known), *arguments)
    card = (tmp_path / "out" / "README.md").read_text()
    assert card.startswith(
        '---\nbase_model:\n- "org/base"\nbase_model_relation: "adapter"\nlibrary_name: "peft"\n'
    )
    assert "fedmerge merge a b --rule 'fedavg()' --weights 2,1 --space 'product()' --seed 3 -o merged" in card
    assert "- energy left out at rank 2: `" in card
    assert str(tmp_path) not in card


def test_dry_run_of_adapters(fedmerge, adapter, tmp_path) -> None:
    a, b = adapter("a", 1.0), adapter("b", 2.0)
    result = fedmerge("merge", a, b, "--dry-run", "--json")
    payload = json.loads(result.stdout)
    assert (payload["kind"], payload["lora_pairs"], payload["ranks"], payload["fits"]) == (
        "adapter",
        1,
        [2],
        True,
    )
    shown = fedmerge("merge", a, b, "--dry-run", "-o", tmp_path / "out")
    assert "2 adapters of rank 2: 1 LoRA pair" in shown.stdout
    assert not (tmp_path / "out").exists()
    package.save_adapter(package.Adapter(pair_of(3, 0, 4, 4), package.Lora(3, 4.0)), tmp_path / "c")
    mixed = fedmerge("merge", a, tmp_path / "c", "--dry-run", "--space", "factors()")
    assert mixed.exit_code == 1
    assert "the adapters have ranks [2, 3], which factors() can't join; product() can" in mixed.stderr


def test_names_decide_random_masks_and_the_kernel_can_be_chosen(fedmerge, tmp_path) -> None:
    for seed, name in enumerate("ab"):
        package.save_adapter(package.Adapter(pair_of(2, seed), package.Lora(2, 4.0)), tmp_path / name)
    arguments = (tmp_path / "a", tmp_path / "b", "--rule", "dare(density=0.5)", "--kernel", "plain")
    bits = []
    for out, names in (("x", "n,s"), ("y", "n,s"), ("z", "s,n")):
        result = fedmerge("merge", *arguments, "--names", names, "-o", tmp_path / out, "--json")
        assert json.loads(result.stdout)["report"]["kernel"] == "plain"
        bits.append((tmp_path / out / "adapter_model.safetensors").read_bytes())
    assert bits[0] == bits[1] != bits[2]


@pytest.fixture
def headed(tmp_path: Path) -> list[Path]:
    """Two adapters that save a head whole, and their base."""
    from fedmerge.wire.tensorfile import write_tensors

    head = "base_model.model.score.weight"
    for seed, name in enumerate(("a", "b")):
        tensors = pair_of(2, seed) | {head: torch.full((2, 10), 1.0 + seed)}
        metadata = {"modules_to_save": '["score"]'}
        package.save_adapter(package.Adapter(tensors, package.Lora(2, 4.0), metadata), tmp_path / name)
    (tmp_path / "base").mkdir()
    write_tensors(tmp_path / "base" / "model.safetensors", {"score.weight": torch.full((2, 10), 0.5)})
    return [tmp_path / name for name in ("a", "b", "base")]


def test_whole_weights_are_merged_by_their_difference_to_the_base(fedmerge, headed, tmp_path) -> None:
    a, b, base = headed
    rule = ("--rule", "task_arithmetic(scale=1.0)")
    refused = fedmerge("merge", a, b, *rule, "-o", tmp_path / "no")
    assert refused.exit_code == 1
    assert "'base_model.model.score.weight' is a whole weight and no update" in refused.stderr
    assert not (tmp_path / "no").exists()
    assert fedmerge("merge", a, b, *rule, "--base", base, "-o", tmp_path / "out").exit_code == 0
    found = package.load_adapter(tmp_path / "out").tensors["base_model.model.score.weight"]
    assert torch.equal(found, torch.full((2, 10), 0.5 + 0.5 + 1.5))
    assert fedmerge("merge", a, b, "-o", tmp_path / "mean").exit_code == 0
    found = package.load_adapter(tmp_path / "mean").tensors["base_model.model.score.weight"]
    assert torch.equal(found, torch.full((2, 10), 1.5))


@pytest.mark.parametrize(
    ("change", "said"),
    [
        ({MODULE + "lora_A.weight": torch.full((2, 12), torch.nan)}, "holds 24 NaN and 0 Inf"),
        ({MODULE + "lora_A.weight": torch.ones(2, 13)}, "has shape (2, 13)"),
        ({"x.lora_A.weight": torch.ones(2, 3), "x.lora_B.weight": torch.ones(3, 2)}, "has 'x.lora_A.weight'"),
    ],
)
def test_adapters_that_do_not_fit_are_refused_by_name(fedmerge, tmp_path, change, said: str) -> None:
    lora = package.Lora(2, 4.0)
    package.save_adapter(package.Adapter(pair_of(2, 0), lora), tmp_path / "a")
    package.save_adapter(package.Adapter(pair_of(2, 1) | change, lora), tmp_path / "b")
    for options in (("-o", tmp_path / "out"), ("--dry-run",)):
        result = fedmerge("merge", tmp_path / "a", tmp_path / "b", *options)
        assert result.exit_code == 1
        assert f"{tmp_path / 'b'}" in result.stderr
        assert said in result.stderr
    assert not (tmp_path / "out").exists()


@pytest.mark.parametrize("name", ["adapter_model.safetensors", "adapter_config.json"])
def test_an_adapters_link_that_leads_out(fedmerge, adapter, tmp_path, name: str) -> None:
    hostile = adapter("a", 1.0)
    (hostile / name).rename(tmp_path / name)
    (hostile / name).symlink_to(tmp_path / name)
    result = fedmerge("merge", hostile, adapter("b", 2.0), "-o", tmp_path / "out")
    assert "is a link that leads out of its folder" in result.stderr
