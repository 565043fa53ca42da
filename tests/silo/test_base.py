"""Loading a base, and its fingerprint."""

from __future__ import annotations

import shutil
from pathlib import Path

import pytest
import torch
from huggingface_hub.errors import LocalEntryNotFoundError

from fedmerge.errors import ConfigError
from fedmerge.silo import base, fingerprint
from fedmerge.silo.base import check_fingerprint, load_base, load_tokenizer, outline_base, pick_device
from fedmerge.silo.fingerprint import fingerprint_of
from fedmerge.silo.settings import BaseSettings

CPU = torch.device("cpu")


@pytest.fixture(autouse=True)
def own_cache(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
    monkeypatch.setenv("XDG_CACHE_HOME", str(tmp_path / "cache"))
    return tmp_path / "cache"


@pytest.fixture
def copied(tiny_llama: Path, tmp_path: Path) -> Path:
    return Path(shutil.copytree(tiny_llama, tmp_path / "copy"))


def test_frozen_and_in_evaluation_mode(tiny_llama: Path) -> None:
    loaded = load_base(BaseSettings(str(tiny_llama)), "causal-lm", CPU)
    assert not loaded.model.training
    assert not any(parameter.requires_grad for parameter in loaded.model.parameters())
    assert loaded.tokenizer.pad_token_id == 0


@pytest.mark.parametrize("dtype", ["float32", "bfloat16", "float16"])
def test_dtype(tiny_llama: Path, dtype: str) -> None:
    loaded = load_base(BaseSettings(str(tiny_llama), dtype=dtype), "causal-lm", CPU)
    assert loaded.model.dtype == getattr(torch, dtype)


def test_dtype_auto_is_as_the_weights_are_stored(copied: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    load_base(BaseSettings(str(copied)), "causal-lm", CPU).model.to(torch.bfloat16).save_pretrained(copied)
    auto = BaseSettings(str(copied), dtype="auto")
    assert load_base(auto, "causal-lm", CPU).model.dtype == torch.bfloat16
    monkeypatch.setattr(base, "find_spec", lambda name: object())
    quantized = base._quantization(BaseSettings(str(copied), dtype="auto", quantization="4bit"))
    assert quantized.bnb_4bit_compute_dtype == torch.bfloat16


def test_an_encoder_of_a_causal_checkpoint(tiny_llama: Path) -> None:
    loaded = load_base(BaseSettings(str(tiny_llama)), "encoder", CPU)
    assert type(loaded.model).__name__ == "LlamaModel"


def test_the_outline_has_no_weights(tiny_llama: Path) -> None:
    outline = outline_base(BaseSettings(str(tiny_llama)), "causal-lm")
    assert {parameter.device.type for parameter in outline.parameters()} == {"meta"}


def test_a_base_without_pad_token_gets_one(wordy: Path, copied: Path) -> None:
    for path in wordy.iterdir():
        shutil.copy(path, copied)
    tokenizer = load_tokenizer(BaseSettings(str(copied)))
    assert tokenizer.pad_token_id == tokenizer.eos_token_id is not None


def test_missing_weights_are_told(tiny_bert: Path) -> None:
    with pytest.raises(ConfigError, match=r"no weights for .*cls.*which a causal-lm needs"):
        load_base(BaseSettings(str(tiny_bert)), "causal-lm", CPU)


@pytest.mark.parametrize("model", ["/no/such/folder", "./nowhere", "~/nowhere-at-all"])
def test_no_such_folder(model: str) -> None:
    with pytest.raises(ConfigError, match="there is no such folder"):
        load_base(BaseSettings(model), "causal-lm", CPU)


def test_a_folder_that_is_no_model(tmp_path: Path) -> None:
    with pytest.raises(ConfigError, match=r"holds no model \(no config.json\)"):
        load_base(BaseSettings(str(tmp_path)), "causal-lm", CPU)


def test_a_broken_config_is_told(copied: Path) -> None:
    (copied / "config.json").write_text('{"model_type": "no-such-architecture"}')
    with pytest.raises(ConfigError, match=r"can't be loaded: .*no-such-architecture"):
        load_base(BaseSettings(str(copied)), "causal-lm", CPU)


@pytest.mark.parametrize("model", ["some-owner/some-model", "not//an/id"])
def test_the_hub_out_of_reach(model: str) -> None:
    with pytest.raises(ConfigError, match=rf"no folder here.*`hf download {model}`.*HF_HOME"):
        load_base(BaseSettings(model), "causal-lm", CPU)


def test_a_hub_id_is_fetched(copied: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    asked = []

    def download(model: str, allow_patterns: list[str]) -> str:
        asked.append((model, allow_patterns))
        return str(copied)

    monkeypatch.setattr("huggingface_hub.snapshot_download", download)
    load_base(BaseSettings("owner/model"), "causal-lm", CPU)
    assert asked[0][0] == "owner/model"
    assert "*.safetensors" in asked[0][1]
    assert not any(pattern.endswith(".bin") for pattern in asked[0][1])


def test_an_old_hub_id_has_bin_files(copied: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    (copied / "model.safetensors").unlink()
    asked = []
    monkeypatch.setattr(
        "huggingface_hub.snapshot_download",
        lambda model, allow_patterns: asked.append(allow_patterns) or str(copied),
    )
    assert base.base_folder(BaseSettings("owner/model")) == copied
    assert "pytorch_model*.bin" in asked[1]


def test_quantization_wants_bitsandbytes(tiny_llama: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(base, "find_spec", lambda name: None)
    with pytest.raises(ConfigError, match=r"'4bit' needs bitsandbytes: `pip install bitsandbytes`"):
        load_base(BaseSettings(str(tiny_llama), quantization="4bit"), "causal-lm", CPU)


@pytest.mark.parametrize(("name", "field"), [("8bit", "load_in_8bit"), ("4bit", "load_in_4bit")])
def test_quantization_config(name: str, field: str, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(base, "find_spec", lambda name: object())
    config = base._quantization(BaseSettings("x", quantization=name, dtype="bfloat16"))
    assert getattr(config, field) is True


def test_a_gpu_that_is_not_there() -> None:
    with pytest.raises(ConfigError, match=r"'cuda:99': torch sees \d+ GPUs"):
        pick_device("cuda:99")
    assert pick_device("cpu") == CPU


def test_the_hub_error_is_the_cause() -> None:
    with pytest.raises(ConfigError) as caught:
        base.base_folder(BaseSettings("some-owner/some-model"))
    assert isinstance(caught.value.__cause__, LocalEntryNotFoundError)


def test_fingerprint_is_of_the_content(tiny_llama: Path, copied: Path) -> None:
    assert fingerprint_of(copied) == fingerprint_of(tiny_llama)
    (copied / "tokenizer_config.json").write_text("{}")
    assert fingerprint_of(copied) != fingerprint_of(tiny_llama)


def test_fingerprint_sees_one_flipped_bit(copied: Path) -> None:
    before = fingerprint_of(copied)
    weights = bytearray((copied / "model.safetensors").read_bytes())
    weights[-1] ^= 1
    (copied / "model.safetensors").write_bytes(weights)
    assert fingerprint_of(copied) != before


def test_fingerprint_ignores_what_is_no_weight(copied: Path) -> None:
    before = fingerprint_of(copied)
    (copied / "README.md").write_text("hello")
    (copied / "adapter_model.safetensors").write_bytes(b"an adapter beside the base")
    assert fingerprint_of(copied) == before


def test_fingerprint_is_remembered(copied: Path, own_cache: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    first = fingerprint_of(copied)
    monkeypatch.setattr(fingerprint, "_file_hash", lambda path: pytest.fail(f"{path} was read again"))
    assert fingerprint_of(copied) == first
    assert any(own_cache.rglob("*"))


def test_fingerprint_without_a_cache(copied: Path, own_cache: Path) -> None:
    first = fingerprint_of(copied)
    shutil.rmtree(own_cache)
    own_cache.write_text("a file where the folder should be")
    assert fingerprint_of(copied) == first


def test_a_damaged_note_is_not_believed(copied: Path, own_cache: Path) -> None:
    first = fingerprint_of(copied)
    for note in (own_cache / "fedmerge" / "fingerprints").iterdir():
        note.write_bytes(b"\xff cut")
    assert fingerprint_of(copied) == first


def test_no_weights(tmp_path: Path) -> None:
    with pytest.raises(ConfigError, match=r"holds no weights \(\*.safetensors\)"):
        fingerprint_of(tmp_path)


def test_another_base_than_configured(tiny_llama: Path) -> None:
    settings = BaseSettings(str(tiny_llama), fingerprint="0" * 64)
    with pytest.raises(ConfigError, match="other weights, or another tokenizer"):
        check_fingerprint(settings)
    found = check_fingerprint(BaseSettings(str(tiny_llama)))
    assert check_fingerprint(BaseSettings(str(tiny_llama), fingerprint=found)) == found


def test_the_builtin_base_loads() -> None:
    if not (base.BUILTIN / "config.json").is_file():
        pytest.skip("the built-in base is not there yet")
    loaded = load_base(BaseSettings("builtin"), "causal-lm", CPU)
    assert loaded.tokenizer.eos_token_id == 1
