"""The first adapter, and writing adapters into the model and reading them back; PEFT reads the same."""

from __future__ import annotations

import math
from collections.abc import Callable
from dataclasses import replace
from pathlib import Path

import peft
import pytest
import torch
from transformers import AutoModel, AutoModelForCausalLM, GPT2Config, GPT2LMHeadModel

from fedmerge.adapters import Adapter
from fedmerge.errors import AdapterMismatch, ConfigError
from fedmerge.silo.base import load_base
from fedmerge.silo.lora import AdaptedModel, initial_adapter, read_adapter, write_adapter
from fedmerge.silo.settings import SiloSettings
from fedmerge.silo.targets import layer_stack, target_modules
from fedmerge.silo.tasks.task import Batch, Example, collate
from fedmerge.wire.files import load_adapter, save_adapter

Settings = Callable[..., SiloSettings]
CPU = torch.device("cpu")
CLASSIFY = {"kind": "classification", "head": "linear"}


def adapted(settings: SiloSettings, architecture: str = "causal-lm") -> AdaptedModel:
    return AdaptedModel(load_base(settings.base, architecture, CPU), settings)


def filled(adapter: Adapter, seed: int = 0) -> Adapter:
    """The same adapter with random values everywhere."""
    generator = torch.Generator().manual_seed(seed)
    tensors = {n: torch.randn(t.shape, generator=generator) * 0.3 for n, t in adapter.tensors.items()}
    return Adapter(tensors, adapter.lora, adapter.metadata)


def some_batch() -> Batch:
    rows = [torch.arange(3, 23, dtype=torch.int32), torch.arange(40, 49, dtype=torch.int32)]
    return collate([Example(row, row) for row in rows], 0, CPU)


def same(left: Adapter, right: Adapter) -> bool:
    return left.tensors.keys() == right.tensors.keys() and all(
        torch.equal(left.tensors[name], right.tensors[name]) for name in left.tensors
    )


def test_initial_adapter_changes_nothing(tiny_llama: Path, silo_settings: Settings) -> None:
    settings = silo_settings(tiny_llama)
    model, adapter = adapted(settings), initial_adapter(settings)
    write_adapter(model, adapter, {})
    with torch.no_grad():
        logits = model.run(some_batch()).logits
        with model.untouched():
            assert torch.equal(logits, model.run(some_batch()).logits)


def test_initial_adapter_is_drawn_as_peft_draws(tiny_llama: Path, silo_settings: Settings) -> None:
    adapter = initial_adapter(silo_settings(tiny_llama, lora={"rank": 4}))
    drawn = adapter.tensors["base_model.model.model.layers.0.self_attn.q_proj.lora_A.weight"]
    assert drawn.shape == (4, 32)
    assert 0.9 / math.sqrt(32) < drawn.abs().max() <= 1 / math.sqrt(32)
    assert len(adapter.tensors) == 2 * 7 * 3
    assert all(tensor.dtype == torch.float32 for tensor in adapter.tensors.values())


def test_a_tensor_does_not_depend_on_the_others(tiny_llama: Path, silo_settings: Settings) -> None:
    every = initial_adapter(silo_settings(tiny_llama))
    some = initial_adapter(silo_settings(tiny_llama, lora={"layers": "top 1", "target_modules": "q_proj"}))
    assert len(some.tensors) == 2
    assert all(torch.equal(tensor, every.tensors[name]) for name, tensor in some.tensors.items())
    other_seed = initial_adapter(replace(silo_settings(tiny_llama), seed=1))
    assert not same(every, other_seed)


def test_linear_head_starts_at_zero(tiny_bert: Path, silo_settings: Settings) -> None:
    adapter = initial_adapter(silo_settings(tiny_bert, task=CLASSIFY), ["a", "b", "c"])
    assert torch.equal(adapter.tensors["head.weight"], torch.zeros(3, 32))
    assert torch.equal(adapter.tensors["head.bias"], torch.zeros(3))
    with pytest.raises(ConfigError, match="at least two labels"):
        initial_adapter(silo_settings(tiny_bert, task=CLASSIFY))


def test_written_and_read(tiny_llama: Path, silo_settings: Settings) -> None:
    settings = silo_settings(tiny_llama)
    model, adapter = adapted(settings), filled(initial_adapter(settings))
    write_adapter(model, adapter, {})
    assert same(read_adapter(model), adapter)
    model.parameters["base_model.model.model.layers.0.mlp.up_proj.lora_A.weight"].data.zero_()
    assert not same(read_adapter(model), adapter)


def test_reading_copies(tiny_llama: Path, silo_settings: Settings) -> None:
    settings = silo_settings(tiny_llama)
    model = adapted(settings)
    write_adapter(model, filled(initial_adapter(settings)), {})
    before = read_adapter(model)
    write_adapter(model, initial_adapter(settings), {})
    assert same(before, filled(initial_adapter(settings)))


def test_only_the_adapter_trains(tiny_bert: Path, silo_settings: Settings) -> None:
    settings = silo_settings(tiny_bert, task=CLASSIFY, lora={"layers": "top 2"})
    model, adapter = adapted(settings, "encoder"), filled(initial_adapter(settings, ["a", "b"]))
    head = {name: adapter.tensors[name] for name in ("head.weight", "head.bias")}
    write_adapter(model, adapter, head)
    (model.run(some_batch()).last_hidden_state.sum() + model.head["head.bias"].sum()).backward()
    touched = {n.replace(".default.", ".") for n, p in model.network.named_parameters() if p.grad is not None}
    assert touched == {name for name in adapter.tensors if name.startswith("base_model.")}
    assert model.parameters.keys() == adapter.tensors.keys()


def test_factors_are_float32_on_a_bfloat16_base(tiny_llama: Path, silo_settings: Settings) -> None:
    model = adapted(silo_settings(tiny_llama, base={"dtype": "bfloat16"}))
    assert {parameter.dtype for parameter in model.parameters.values()} == {torch.float32}
    model.run(some_batch()).logits.float().sum().backward()


@pytest.mark.parametrize(
    "lora",
    [
        {},
        {"rslora": True},
        {"layers": "top 2"},
        {"layers": "0, 2", "target_modules": "q_proj,down_proj"},
    ],
)
def test_peft_loads_what_is_saved(
    lora: dict[str, object], tiny_llama: Path, silo_settings: Settings, tmp_path: Path
) -> None:
    settings = silo_settings(tiny_llama, lora=lora)
    model, adapter = adapted(settings), filled(initial_adapter(settings))
    write_adapter(model, adapter, {})
    save_adapter(adapter, tmp_path / "out")
    theirs = peft.PeftModel.from_pretrained(
        AutoModelForCausalLM.from_pretrained(tiny_llama), str(tmp_path / "out")
    )
    batch = some_batch()
    with torch.no_grad():
        ours = model.run(batch).logits
        assert torch.equal(ours, theirs(input_ids=batch.tokens, attention_mask=batch.mask).logits)
        with model.untouched():
            assert not torch.allclose(ours, model.run(batch).logits, atol=1e-2)
    assert same(load_adapter(tmp_path / "out"), adapter)
    config = peft.PeftConfig.from_pretrained(str(tmp_path / "out"))
    assert config.task_type == "CAUSAL_LM"


def test_peft_loads_an_encoder_with_a_head(tiny_bert: Path, silo_settings: Settings, tmp_path: Path) -> None:
    settings = silo_settings(tiny_bert, task=CLASSIFY, lora={"layers": "top 2"})
    model, adapter = adapted(settings, "encoder"), filled(initial_adapter(settings, ["a", "b", "c"]))
    write_adapter(model, adapter, {name: adapter.tensors[name] for name in ("head.weight", "head.bias")})
    save_adapter(adapter, tmp_path / "out")
    theirs = peft.PeftModel.from_pretrained(AutoModel.from_pretrained(tiny_bert), str(tmp_path / "out"))
    batch = some_batch()
    with torch.no_grad():
        ours = model.run(batch).last_hidden_state
        assert torch.equal(ours, theirs(input_ids=batch.tokens, attention_mask=batch.mask).last_hidden_state)


def test_all_linear_leaves_the_pooler_and_the_output_alone(
    tiny_bert: Path, tiny_llama: Path, silo_settings: Settings
) -> None:
    bert = target_modules(
        load_base(silo_settings(tiny_bert).base, "encoder", CPU).model, silo_settings("x").lora
    )
    assert len(bert) == 6 * 3
    assert not any("pooler" in name for name in bert)
    llama = load_base(silo_settings(tiny_llama).base, "causal-lm", CPU).model
    assert "lm_head" not in target_modules(llama, silo_settings("x").lora)


@pytest.mark.parametrize(
    ("layers", "message"),
    [
        ("top 4", r"lora.layers = 'top 4': the base has 3 layers, 0 to 2"),
        ("1,7", r"lora.layers = '1,7': the base has 3 layers, 0 to 2"),
    ],
)
def test_layers_that_are_not_there(
    layers: str, message: str, tiny_llama: Path, silo_settings: Settings
) -> None:
    with pytest.raises(ConfigError, match=message):
        initial_adapter(silo_settings(tiny_llama, lora={"layers": layers}))


def test_targets_that_are_not_there(tiny_llama: Path, silo_settings: Settings) -> None:
    settings = silo_settings(tiny_llama, lora={"target_modules": "q_proj, query"})
    with pytest.raises(
        ConfigError, match=r"'query' matches no linear module.*there are: down_proj, gate_proj, k_"
    ):
        initial_adapter(settings)


def test_the_outline_and_the_model_agree(tiny_bert: Path, silo_settings: Settings) -> None:
    settings = silo_settings(tiny_bert, task={"kind": "classification"}, lora={"layers": "1"})
    model, adapter = adapted(settings, "encoder"), initial_adapter(settings, ["a", "b"])
    assert adapter.tensors.keys() == model.parameters.keys()
    assert adapter.lora == model.lora


def test_an_adapter_of_higher_rank(tiny_llama: Path, silo_settings: Settings) -> None:
    settings = silo_settings(tiny_llama)
    model, adapter = adapted(settings), filled(initial_adapter(settings))
    tokens = torch.arange(12).view(1, 12)
    with torch.no_grad():
        write_adapter(model, adapter, {})
        before = model.network(input_ids=tokens).logits
        # The same update, in factors of twice the rank: half of B with each of two copies of A.
        twice = {
            name: torch.cat([t, t]) if ".lora_A." in name else torch.cat([t, t], dim=1) / 2
            for name, t in adapter.tensors.items()
        }
        write_adapter(model, Adapter(twice, adapter.lora.of_rank(2 * adapter.lora.rank)), {})
        assert torch.allclose(model.network(input_ids=tokens).logits, before, atol=1e-5)
        assert same(read_adapter(model), Adapter(twice))
        write_adapter(model, adapter, {})
        assert torch.equal(model.network(input_ids=tokens).logits, before)


def broken(adapter: Adapter, how: str) -> Adapter:
    tensors, name = dict(adapter.tensors), next(iter(adapter.tensors))
    if how == "missing":
        del tensors[name]
    if how == "strange":
        tensors["base_model.model.elsewhere.lora_A.weight"] = torch.zeros(1)
    if how == "shape":
        tensors[name] = tensors[name].T
    lora = replace(adapter.lora, alpha=99.0) if how == "scaling" else adapter.lora
    return Adapter(tensors, lora)


@pytest.mark.parametrize(
    ("how", "message"),
    [
        ("missing", "1 tensors are missing .*q_proj.*, 0 are unknown"),
        ("strange", "0 tensors are missing .*, 1 are unknown .*elsewhere"),
        ("shape", r"q_proj.lora_A.weight' has shape \(32, 4\), the model of this silo has \(4, 32\)"),
        ("scaling", "LoRA scaling is 24.75, this silo is set to 2"),
    ],
)
def test_an_adapter_that_does_not_fit(
    how: str, message: str, tiny_llama: Path, silo_settings: Settings
) -> None:
    settings = silo_settings(tiny_llama)
    model, adapter = adapted(settings), filled(initial_adapter(settings))
    write_adapter(model, adapter, {})
    with pytest.raises(AdapterMismatch, match=message):
        write_adapter(model, broken(initial_adapter(settings), how), {})
    assert same(read_adapter(model), adapter)


def test_weights_stored_transposed(silo_settings: Settings, tiny_llama: Path, tmp_path: Path) -> None:
    """GPT-2 keeps its linear weights as (inputs, outputs)."""
    config = GPT2Config(vocab_size=259, n_embd=32, n_layer=2, n_head=2, n_positions=64)
    GPT2LMHeadModel(config).save_pretrained(tmp_path / "gpt2")
    (tmp_path / "gpt2" / "tokenizer_config.json").write_text(
        (tiny_llama / "tokenizer_config.json").read_text()
    )
    settings = silo_settings(tmp_path / "gpt2")
    model, adapter = adapted(settings), filled(initial_adapter(settings))
    write_adapter(model, adapter, {})
    save_adapter(adapter, tmp_path / "out")
    theirs = peft.PeftModel.from_pretrained(
        AutoModelForCausalLM.from_pretrained(tmp_path / "gpt2"), str(tmp_path / "out")
    )
    batch = some_batch()
    with torch.no_grad():
        assert torch.equal(
            model.run(batch).logits, theirs(input_ids=batch.tokens, attention_mask=batch.mask).logits
        )


def test_a_base_without_one_list_of_layers(silo_settings: Settings) -> None:
    lists = torch.nn.ModuleDict(
        {side: torch.nn.ModuleList([torch.nn.Linear(2, 2)]) for side in ("encoder", "decoder")}
    )
    assert layer_stack(lists) is None
    assert layer_stack(torch.nn.ModuleDict({"only": lists["encoder"]})).name == "only"
    lists.get_output_embeddings = lambda: None
    assert target_modules(lists, silo_settings("x").lora) == ("encoder.0", "decoder.0")
    with pytest.raises(ConfigError, match="no single list of layers; use 'all'"):
        target_modules(lists, silo_settings("x", lora={"layers": "top 1"}).lora)
