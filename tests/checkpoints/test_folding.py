"""Adapters folded into their base: what PEFT's merge_and_unload gives, but for its rounding."""

from __future__ import annotations

import pytest
import torch

from fedmerge.adapters import Adapter, Lora
from fedmerge.checkpoints import fold
from fedmerge.errors import AdapterMismatch, WireError
from fedmerge.wire.checkpoint import open_checkpoint
from fedmerge.wire.files import save_adapter

from .making import save

MODULE = "base_model.model.model.layers.0.self_attn.q_proj."


@pytest.fixture(scope="module")
def llama(tmp_path_factory):
    from transformers import LlamaConfig, LlamaForCausalLM

    config = LlamaConfig(
        vocab_size=64, hidden_size=16, intermediate_size=32, num_hidden_layers=2, num_attention_heads=2,
        num_key_value_heads=2, max_position_embeddings=32, tie_word_embeddings=True,
    )  # fmt: skip
    torch.manual_seed(0)
    folder = tmp_path_factory.mktemp("llama")
    LlamaForCausalLM(config).save_pretrained(folder, max_shard_size="8KB")
    return folder


def adapter_of(base, lora, dtype=torch.float32):
    draw = torch.Generator().manual_seed(1)
    tensors = {}
    for name, entry in base.entries.items():
        if "_proj.weight" in name:
            module = "base_model.model." + name.removesuffix(".weight")
            tensors[module + ".lora_A.weight"] = torch.randn(lora.rank, entry.shape[1], generator=draw).to(
                dtype
            )
            tensors[module + ".lora_B.weight"] = torch.randn(entry.shape[0], lora.rank, generator=draw).to(
                dtype
            )
    return Adapter(tensors, lora)


@pytest.mark.parametrize("lora", [Lora(2, 3.0), Lora(4, 2.0, rslora=True)])
def test_as_peft_folds(llama, tmp_path, lora, monkeypatch):
    from peft import PeftModel
    from transformers import AutoModelForCausalLM

    monkeypatch.setattr("fedmerge.checkpoints.folding.WIDTH", 40)
    base = open_checkpoint(llama)
    adapter = adapter_of(base, lora)
    save_adapter(adapter, tmp_path / "adapter", task_type="CAUSAL_LM")
    fold(adapter, base, tmp_path / "out", files={"README.md": b"card"}, shard_bytes=8000)
    found = AutoModelForCausalLM.from_pretrained(tmp_path / "out")
    plain = AutoModelForCausalLM.from_pretrained(llama)
    theirs = PeftModel.from_pretrained(plain, tmp_path / "adapter")
    ids = torch.tensor([[1, 2, 3]])
    torch.testing.assert_close(found(ids).logits, theirs(ids).logits, rtol=1e-4, atol=1e-4)
    for name, tensor in theirs.merge_and_unload().state_dict().items():
        torch.testing.assert_close(found.state_dict()[name], tensor, rtol=1e-5, atol=1e-6)
    assert (tmp_path / "out" / "README.md").read_bytes() == b"card"


def test_rounded_once_to_the_bases_dtype(tmp_path):
    start = torch.randn(4, 3).to(torch.bfloat16)
    base = open_checkpoint(save(tmp_path / "base", {"model.layers.0.self_attn.q_proj.weight": start}))
    a, b = torch.randn(2, 3), torch.randn(4, 2)
    adapter = Adapter({MODULE + "lora_A.weight": a, MODULE + "lora_B.weight": b}, Lora(2, 1.0))
    fold(adapter, base, tmp_path / "out")
    found = open_checkpoint(tmp_path / "out").read("model.layers.0.self_attn.q_proj.weight").reshape(4, 3)
    expected = (start.double() + 0.5 * b.double() @ a.double()).to(torch.bfloat16)
    assert torch.equal(found, expected)


def test_transposed_weights_and_whole_weights(tmp_path):
    name = "model.layers.0.self_attn.q_proj.weight"
    base = open_checkpoint(save(tmp_path / "base", {name: torch.zeros(3, 4), "score.weight": torch.zeros(2)}))
    a, b = torch.randn(2, 3), torch.randn(4, 2)
    tensors = {MODULE + "lora_A.weight": a, MODULE + "lora_B.weight": b}
    head = {"base_model.model.score.weight": torch.ones(2)}
    adapter = Adapter(tensors | head, Lora(2, 2.0), {"fan_in_fan_out": "true"})
    fold(adapter, base, tmp_path / "out")
    found = open_checkpoint(tmp_path / "out")
    torch.testing.assert_close(found.read(name).reshape(3, 4), (b @ a).T)
    assert torch.equal(found.read("score.weight"), torch.ones(2))


def refused(tmp_path, tensors, **changes):
    start = {
        "model.layers.0.self_attn.q_proj.weight": torch.zeros(4, 3, dtype=changes.get("dtype", torch.float32))
    }
    config = {"model_type": "llama", "tie_word_embeddings": True}
    base = open_checkpoint(save(tmp_path / "base", start, config))
    with pytest.raises(AdapterMismatch) as caught:
        fold(Adapter(tensors, changes.get("lora", Lora(2, 2.0))), base, tmp_path / "out")
    assert not list(tmp_path.glob("*out*"))
    return str(caught.value)


def pair(module=MODULE, inputs=3, value=1.0):
    return {
        module + "lora_A.weight": torch.full((2, inputs), value),
        module + "lora_B.weight": torch.ones(4, 2),
    }


def test_what_has_no_place_is_refused(tmp_path):
    assert "no place in the base: a fold would lose it" in refused(
        tmp_path / "1", pair() | {"head.weight": torch.ones(1)}
    )
    assert "tied to the embeddings" in refused(tmp_path / "2", pair("base_model.model.lm_head."))
    assert "has shape (4, 5), the base's" in refused(tmp_path / "3", pair(inputs=5))
    assert "hold NaN or Inf" in refused(tmp_path / "4", pair(value=torch.inf))
    assert "no LoRA settings" in refused(tmp_path / "5", pair(), lora=None)
    assert "not finite" in refused(tmp_path / "6", pair(value=1e6), dtype=torch.float16)


def test_an_output_that_is_there(tmp_path, llama):
    base = open_checkpoint(llama)
    with pytest.raises(WireError, match="there is something already"):
        fold(adapter_of(base, Lora(2, 2)), base, llama)
