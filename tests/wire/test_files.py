"""Adapter folders: PEFT reads them, they come back bit for bit, and hostile ones are refused."""

from __future__ import annotations

import hashlib
import json
import os
import pickle
import re
import struct
import subprocess
import sys
from dataclasses import replace
from pathlib import Path

import pytest
import safetensors.torch
import torch
from hypothesis import given, settings
from hypothesis import strategies as st

from fedmerge.adapters.adapter import Adapter, Lora
from fedmerge.errors import AdapterMismatch, ConfigError, WireError
from fedmerge.wire import files
from fedmerge.wire.files import CONFIG_FILE, TENSOR_FILE, load_adapter, save_adapter
from fedmerge.wire.tensorfile import read_tensors, write_tensors


def small(dtype=torch.float32, **metadata):
    generator = torch.Generator().manual_seed(0)
    tensors = {
        "base_model.model.layers.0.q.lora_A.weight": torch.randn(2, 3, generator=generator).to(dtype),
        "base_model.model.layers.0.q.lora_B.weight": torch.randn(4, 2, generator=generator).to(dtype),
        "head.weight": torch.randn(5, generator=generator).to(dtype),
    }
    return Adapter(tensors, Lora(2, 4.0, target_modules=("q",)), metadata)


def same(one, two):
    return one.tensors.keys() == two.tensors.keys() and all(
        one.tensors[n].dtype == two.tensors[n].dtype and torch.equal(one.tensors[n], two.tensors[n])
        for n in one.tensors
    )


@pytest.mark.parametrize("dtype", [torch.bfloat16, torch.float16, torch.float32, torch.float64])
def test_an_adapter_comes_back_bit_for_bit(tmp_path, dtype):
    adapter = small(dtype, round="3", note="naïve\n")
    assert save_adapter(adapter, tmp_path / "a" / "out") == tmp_path / "a" / "out"
    back = load_adapter(tmp_path / "a" / "out")
    assert same(adapter, back)
    assert back.lora == adapter.lora
    assert back.metadata == adapter.metadata


@pytest.mark.parametrize(
    "lora", [Lora(2, 3.5, rslora=True), Lora(2, 4, target_modules=("layers.0.q",)), Lora(2, 4)]
)
def test_lora_settings_come_back(tmp_path, lora):
    save_adapter(replace(small(), lora=lora), tmp_path / "out")
    back = load_adapter(tmp_path / "out").lora
    assert (back.rank, back.alpha, back.rslora) == (lora.rank, lora.alpha, lora.rslora)
    assert back.target_modules == lora.target_modules


def test_base_and_task_go_into_the_config_and_come_back_as_metadata(tmp_path):
    save_adapter(small(), tmp_path / "one", base_model="org/base", task_type="CAUSAL_LM")
    one = load_adapter(tmp_path / "one")
    assert one.metadata == {"base_model": "org/base", "task_type": "CAUSAL_LM"}
    save_adapter(one, tmp_path / "two")
    assert (tmp_path / "one" / CONFIG_FILE).read_bytes() == (tmp_path / "two" / CONFIG_FILE).read_bytes()
    assert (tmp_path / "one" / TENSOR_FILE).read_bytes() == (tmp_path / "two" / TENSOR_FILE).read_bytes()
    config = json.loads((tmp_path / "two" / CONFIG_FILE).read_text())
    assert config["target_modules"] == ["layers.0.q"]
    assert config["base_model_name_or_path"] == "org/base"


def test_the_bytes_are_the_same_in_every_process(tmp_path):
    """safetensors writes metadata in the order of a randomly seeded hash map."""
    adapter = small(**{f"key{number}": str(number) for number in range(8)})
    save_adapter(adapter, tmp_path / "here")
    code = (
        "import sys; from fedmerge.wire.files import *; a = load_adapter(sys.argv[1]);"
        "save_adapter(a, sys.argv[1] + '-there')"
    )
    environment = {**os.environ, "PYTHONPATH": str(Path(files.__file__).parents[2])}
    subprocess.run([sys.executable, "-c", code, str(tmp_path / "here")], check=True, env=environment)
    one, two = (
        hashlib.sha256((tmp_path / name / TENSOR_FILE).read_bytes()) for name in ("here", "here-there")
    )
    assert one.hexdigest() == two.hexdigest()


def test_views_and_transposes_are_written_as_what_they_show(tmp_path):
    whole = torch.arange(12.0).reshape(3, 4)
    adapter = replace(small(), tensors={**small().tensors, "one": whole[1], "two": whole.T, "three": whole})
    save_adapter(adapter, tmp_path / "out")
    assert same(adapter, load_adapter(tmp_path / "out"))


def test_an_adapters_own_folder_is_written_again_and_keeps_its_other_files(tmp_path):
    save_adapter(small(), tmp_path / "out")
    (tmp_path / "out" / "README.md").write_text("card")
    save_adapter(small(torch.bfloat16), tmp_path / "out")
    assert load_adapter(tmp_path / "out").tensors["head.weight"].dtype == torch.bfloat16
    assert sorted(path.name for path in (tmp_path / "out").iterdir()) == [
        "README.md",
        CONFIG_FILE,
        TENSOR_FILE,
    ]


def test_a_folder_that_holds_something_else_is_refused_unless_asked_for(tmp_path):
    (tmp_path / "thesis.tex").write_text("ten years")
    with pytest.raises(WireError, match="holds something that is no adapter"):
        save_adapter(small(), tmp_path)
    save_adapter(small(), tmp_path, overwrite=True)
    assert (tmp_path / "thesis.tex").read_text() == "ten years"
    with pytest.raises(WireError, match="is a file"):
        save_adapter(small(), tmp_path / "thesis.tex")


def test_an_empty_folder_is_filled(tmp_path):
    save_adapter(small(), tmp_path)
    assert same(load_adapter(str(tmp_path)), small())


@pytest.mark.parametrize("there_before", [False, True])
@pytest.mark.parametrize("call", [0, 1])
def test_a_disk_that_fails_leaves_what_was_there_and_nothing_else(tmp_path, monkeypatch, there_before, call):
    if there_before:
        save_adapter(small(), tmp_path / "out")
    calls = iter(range(10))
    real = os.fsync

    def failing(descriptor):
        if next(calls) == call:
            raise OSError(28, "No space left on device")
        real(descriptor)

    monkeypatch.setattr(os, "fsync", failing)
    with pytest.raises(WireError, match=r"can't be written.*No space left"):
        save_adapter(small(torch.bfloat16), tmp_path / "out")
    monkeypatch.undo()
    if there_before:
        assert same(load_adapter(tmp_path / "out"), small())
        assert len(list((tmp_path / "out").iterdir())) == 2
    assert len(list(tmp_path.iterdir())) == int(there_before)


def test_without_lora_settings_there_is_no_peft_folder(tmp_path):
    with pytest.raises(AdapterMismatch, match="no LoRA settings"):
        save_adapter(Adapter({"head.weight": torch.zeros(1)}), tmp_path / "out")
    with pytest.raises(AdapterMismatch, match="at rank 3"):
        save_adapter(replace(small(), lora=Lora(3, 6)), tmp_path / "out")
    assert not (tmp_path / "out").exists()


HOSTILE = [
    "../../etc/passwd",
    "a/b",
    "a\\b",
    "x\0y",
    "a..b",
    ".a",
    "a.",
    "",
    "x" * 513,
    "l\u043era",
    "a b",
    "a\n",
]


@pytest.mark.parametrize("name", HOSTILE)
def test_hostile_names_are_neither_written_nor_read(tmp_path, name):
    with pytest.raises(WireError, match="no tensor's name"):
        save_adapter(replace(small(), tensors={**small().tensors, name: torch.zeros(1)}), tmp_path / "out")
    save_adapter(small(), tmp_path / "out")
    safetensors.torch.save_file({**small().tensors, name: torch.zeros(1)}, tmp_path / "out" / TENSOR_FILE)
    with pytest.raises(WireError) as caught:
        load_adapter(tmp_path / "out")
    assert len(str(caught.value)) < 1000


@pytest.mark.parametrize("metadata", [{"format": "np"}, {"a": 1}, {1: "a"}])
def test_metadata_are_strings(tmp_path, metadata):
    with pytest.raises(WireError, match="expected strings"):
        save_adapter(replace(small(), metadata=metadata), tmp_path / "out")


def rewrite(folder, **changes):
    config = json.loads((folder / CONFIG_FILE).read_text())
    (folder / CONFIG_FILE).write_text(json.dumps({**config, **changes}))


@pytest.fixture
def folder(tmp_path):
    return save_adapter(small(), tmp_path / "adapter")


@pytest.mark.parametrize(
    "changes, error, says",
    [
        ({"peft_type": "IA3"}, AdapterMismatch, "peft_type is 'IA3'"),
        ({"use_dora": True}, AdapterMismatch, "use_dora = True"),
        ({"init_lora_weights": "pissa_niter_4"}, AdapterMismatch, "init_lora_weights = 'pissa_niter_4'"),
        ({"bias": "all"}, AdapterMismatch, "bias = 'all'"),
        ({"lora_bias": True}, AdapterMismatch, "lora_bias"),
        ({"rank_pattern": {"q": 4}}, AdapterMismatch, "rank_pattern"),
        ({"alpha_pattern": {"q": 4}}, AdapterMismatch, "alpha_pattern"),
        ({"r": 3}, AdapterMismatch, r"A has shape \(2, 3\).* at rank 3"),
        ({"r": -1}, ConfigError, "rank is -1"),
        ({"r": None}, ConfigError, "rank is None"),
        ({"lora_alpha": "x"}, ConfigError, "alpha is 'x'"),
        ({"lora_alpha": float("nan")}, ConfigError, "alpha is nan"),
    ],
)
def test_a_config_that_is_no_plain_lora_is_refused(folder, changes, error, says):
    rewrite(folder, **changes)
    with pytest.raises(error, match=f"^{re.escape(str(folder))}: .*{says}"):
        load_adapter(folder)


@pytest.mark.parametrize("text", ["", "{", "[]", "null", "\ud800", "[" * 100_000, " " * (1 << 21)])
def test_a_config_that_is_no_object_is_refused(folder, text):
    (folder / CONFIG_FILE).write_bytes(text.encode("utf-8", "surrogatepass"))
    with pytest.raises(WireError, match=CONFIG_FILE):
        load_adapter(folder)


def test_a_pickle_is_never_opened(folder, tmp_path):
    canary = tmp_path / "canary"

    class Attack:
        def __reduce__(self):
            return (Path.touch, (canary,))

    (folder / TENSOR_FILE).unlink()
    with pytest.raises(WireError, match=r"has no adapter_model\.safetensors$"):
        load_adapter(folder)
    (folder / "adapter_model.bin").write_bytes(pickle.dumps(Attack()))
    with pytest.raises(WireError, match=r"adapter_model\.bin, a pickle, which can run code"):
        load_adapter(folder)
    (folder / TENSOR_FILE).write_bytes(pickle.dumps(Attack()))
    with pytest.raises(WireError, match="no whole safetensors file"):
        load_adapter(folder)
    assert not canary.exists()


def header(text: bytes, body: bytes = b"") -> bytes:
    return struct.pack("<Q", len(text)) + text + body


@pytest.mark.parametrize("data", [
    b"", b"x", b"\xff" * 100, struct.pack("<Q", 1 << 62), header(b"{"), header(b"[]"),
    header(b'{"x":{"dtype":"F32","shape":[1099511627776],"data_offsets":[0,4398046511104]}}'),
    header(b'{"x":{"dtype":"F32","shape":[2],"data_offsets":[0,4]}}', b"1234"),
    header(b'{"x":{"dtype":"F33","shape":[1],"data_offsets":[0,4]}}', b"1234"),
])  # fmt: skip
def test_damaged_tensors_are_refused(folder, data):
    (folder / TENSOR_FILE).write_bytes(data)
    with pytest.raises(WireError, match="no whole safetensors file"):
        load_adapter(folder)


@settings(max_examples=60, deadline=None)
@given(data=st.data())
def test_property_a_changed_file_is_refused_or_read_as_tensors(tmp_path_factory, data):
    path = tmp_path_factory.mktemp("files") / "x.safetensors"
    write_tensors(path, small().tensors)
    whole = bytearray(path.read_bytes())
    position = data.draw(st.integers(0, len(whole) - 1))
    whole[position] ^= data.draw(st.integers(1, 255))
    path.write_bytes(whole[: data.draw(st.sampled_from([len(whole), position]))])
    try:
        tensors, _ = read_tensors(path)
    except WireError:
        return
    assert all(tensor.numel() <= 1000 for tensor in tensors.values())


def test_factors_of_other_kinds_are_refused(folder):
    tensors = {**small().tensors, "base_model.model.layers.0.q.lora_magnitude_vector.weight": torch.ones(4)}
    safetensors.torch.save_file(tensors, folder / TENSOR_FILE)
    with pytest.raises(AdapterMismatch, match="no factor of a plain LoRA pair"):
        load_adapter(folder)


@pytest.mark.parametrize("source", ["nowhere", "./a/b", "a/b/c", "/no/such/folder", Path("no/folder")])
def test_what_is_neither_folder_nor_hub_id_is_refused(source):
    with pytest.raises(ConfigError, match="no such folder, and it is no Hub id"):
        load_adapter(source)


def test_a_hub_id_without_a_network_is_a_sentence():
    with pytest.raises(ConfigError, match="the Hub did not give it: it may be offline"):
        load_adapter("fedmerge-tests/no-such-adapter")


def test_a_hub_id_is_read_from_where_the_hub_put_it(monkeypatch, folder):
    import huggingface_hub

    monkeypatch.setattr(huggingface_hub, "snapshot_download", lambda name, **_: str(folder))
    assert same(load_adapter("owner/name"), small())


def test_a_file_or_a_folder_without_a_config_is_refused(tmp_path, folder):
    with pytest.raises(WireError, match="is a file"):
        load_adapter(folder / TENSOR_FILE)
    with pytest.raises(WireError, match=r"no adapter_config\.json"):
        load_adapter(tmp_path)


def test_tensor_files_by_themselves(tmp_path):
    write_tensors(tmp_path / "x.safetensors", small().tensors, {"round": "3"})
    tensors, metadata = read_tensors(tmp_path / "x.safetensors")
    assert same(Adapter(tensors), small())
    assert metadata == {"round": "3"}
    with pytest.raises(WireError, match="can't be written"):
        write_tensors(tmp_path / "no" / "x.safetensors", small().tensors)


# PEFT itself is the judge of its format.


def bert():
    from transformers import BertConfig, BertModel

    torch.manual_seed(0)
    return BertModel(
        BertConfig(
            vocab_size=40, hidden_size=16, intermediate_size=24, num_hidden_layers=2, num_attention_heads=2
        )
    ).eval()


def llama():
    from transformers import LlamaConfig, LlamaForCausalLM

    torch.manual_seed(0)
    return LlamaForCausalLM(
        LlamaConfig(
            vocab_size=40, hidden_size=16, intermediate_size=24, num_hidden_layers=2, num_attention_heads=2
        )
    ).eval()


def outputs(model):
    with torch.no_grad():
        return model(input_ids=torch.arange(3, 13)[None])[0]


@pytest.mark.parametrize("model, targets, task", [(bert, ["query", "value"], None),
                                                  (llama, "all-linear", "CAUSAL_LM")])  # fmt: skip
@pytest.mark.parametrize("rslora", [False, True])
@pytest.mark.parametrize("extra", [False, True])
def test_peft_loads_what_we_write(tmp_path, model, targets, task, *, rslora, extra):
    import peft

    config = peft.LoraConfig(
        r=4, lora_alpha=6, target_modules=targets, use_rslora=rslora, task_type=task, init_lora_weights=False,
        layers_to_transform=[1] if task is None else None,
    )  # fmt: skip
    trained = peft.get_peft_model(model(), config).eval()
    tensors = dict(peft.get_peft_model_state_dict(trained))
    if extra:
        tensors |= {"head.weight": torch.ones(2, 16), "head.bias": torch.ones(2)}
    save_adapter(Adapter(tensors, Lora(4, 6, rslora=rslora)), tmp_path / "out", task_type=task)
    loaded = peft.PeftModel.from_pretrained(model(), tmp_path / "out").eval()
    torch.testing.assert_close(outputs(loaded), outputs(trained), rtol=0, atol=0)
    assert not torch.equal(outputs(loaded), outputs(model()))
    assert sum("lora_A" in name for name, _ in loaded.named_parameters()) == sum(
        "lora_A" in name for name in tensors
    )


@pytest.mark.parametrize("model", [bert, llama])
def test_we_read_what_peft_writes(tmp_path, model):
    import peft

    config = peft.LoraConfig(r=4, lora_alpha=6, target_modules="all-linear", init_lora_weights=False)
    trained = peft.get_peft_model(model(), config)
    trained.save_pretrained(tmp_path / "theirs")
    adapter = load_adapter(tmp_path / "theirs")
    assert (adapter.lora.rank, adapter.lora.alpha, adapter.lora.rslora) == (4, 6, False)
    assert adapter.tensors.keys() == dict(peft.get_peft_model_state_dict(trained)).keys()
    save_adapter(adapter, tmp_path / "ours")
    ours = peft.PeftModel.from_pretrained(model(), tmp_path / "ours")
    torch.testing.assert_close(outputs(ours.eval()), outputs(trained.eval()), rtol=0, atol=0)


def test_modules_to_save_survive(tmp_path):
    """A trained classifier of PEFT's own kind is carried along, and PEFT finds it again."""
    import peft

    config = peft.LoraConfig(r=2, lora_alpha=2, target_modules=["query"], modules_to_save=["pooler"])
    trained = peft.get_peft_model(bert(), config)
    with torch.no_grad():
        trained.base_model.model.pooler.modules_to_save.default.dense.bias.fill_(0.5)
    trained.save_pretrained(tmp_path / "theirs")
    adapter = load_adapter(tmp_path / "theirs")
    assert adapter.metadata["modules_to_save"] == '["pooler"]'
    save_adapter(adapter, tmp_path / "ours")
    ours = peft.PeftModel.from_pretrained(bert(), tmp_path / "ours").eval()
    pooled = [model.eval()(input_ids=torch.arange(3, 13)[None]).pooler_output for model in (ours, trained)]
    torch.testing.assert_close(*pooled, rtol=0, atol=0)
