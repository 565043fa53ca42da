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
