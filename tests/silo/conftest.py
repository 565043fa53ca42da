"""A package of one module, as pip would have installed it."""

from __future__ import annotations

import importlib
import sys
import textwrap
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any

import pytest

from fedmerge.silo.settings import (
    BaseSettings,
    DataSettings,
    LoraSettings,
    SiloSettings,
    TaskSettings,
    TrainSettings,
)

TEMPLATE = (
    "{% for m in messages %}{% if m.role == 'system' %}{{ raise_exception('no system role') }}{% endif %}"
    "<{{ m.role }}>{{ m.content }}</s>{% endfor %}{% if add_generation_prompt %}<assistant>{% endif %}"
)


@pytest.fixture
def installed(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Iterator[Callable[[str, str], None]]:
    """Install the module `elsewhere` with these entry points and this code, for one test."""

    def install(entries: str, code: str) -> None:
        info = tmp_path / "site" / "elsewhere-1.0.dist-info"
        info.mkdir(parents=True)
        (info / "METADATA").write_text("Metadata-Version: 2.1\nName: elsewhere\nVersion: 1.0\n")
        (info / "entry_points.txt").write_text(entries)
        (info.parent / "elsewhere.py").write_text(textwrap.dedent(code))
        monkeypatch.syspath_prepend(info.parent)
        importlib.invalidate_caches()

    yield install
    sys.modules.pop("elsewhere", None)


@pytest.fixture(scope="session")
def tiny_llama(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A random causal language model of three layers over bytes."""
    import torch
    from transformers import ByT5Tokenizer, LlamaConfig, LlamaForCausalLM

    folder = tmp_path_factory.mktemp("llama")
    config = LlamaConfig(
        vocab_size=259, hidden_size=32, intermediate_size=64, num_hidden_layers=3, num_attention_heads=2,
        max_position_embeddings=128, tie_word_embeddings=True, pad_token_id=0, eos_token_id=1,
        bos_token_id=None,
    )  # fmt: skip
    torch.manual_seed(0)
    LlamaForCausalLM(config).save_pretrained(folder)
    ByT5Tokenizer(extra_ids=0).save_pretrained(folder)
    return folder


@pytest.fixture(scope="session")
def tiny_bert(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A random encoder of three layers over bytes, with dropout."""
    import torch
    from transformers import BertConfig, BertModel, ByT5Tokenizer

    folder = tmp_path_factory.mktemp("bert")
    config = BertConfig(
        vocab_size=259, hidden_size=32, intermediate_size=64, num_hidden_layers=3, num_attention_heads=2,
        max_position_embeddings=128, initializer_range=0.3,
    )  # fmt: skip
    torch.manual_seed(0)
    BertModel(config).save_pretrained(folder)
    ByT5Tokenizer(extra_ids=0).save_pretrained(folder)
    return folder


@pytest.fixture(scope="session")
def wordy(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A fast tokenizer with several bytes a token, a beginning token and a chat template; no model."""
    from tokenizers import Tokenizer, decoders, models, pre_tokenizers, trainers
    from transformers import PreTrainedTokenizerFast

    folder = tmp_path_factory.mktemp("wordy")
    tokenizer = Tokenizer(models.BPE())
    tokenizer.pre_tokenizer = pre_tokenizers.ByteLevel(add_prefix_space=False)
    tokenizer.decoder = decoders.ByteLevel()
    special = ["<s>", "</s>", "<user>", "<assistant>"]
    trainer = trainers.BpeTrainer(
        vocab_size=300, special_tokens=special, initial_alphabet=pre_tokenizers.ByteLevel.alphabet(),
        show_progress=False,
    )  # fmt: skip
    tokenizer.train_from_iterator(["the cat sat on the mat and the hat"] * 20, trainer)
    fast = PreTrainedTokenizerFast(tokenizer_object=tokenizer, bos_token="<s>", eos_token="</s>")
    fast.chat_template = TEMPLATE
    fast.save_pretrained(folder)
    return folder


SettingsFactory = Callable[..., SiloSettings]


@pytest.fixture
def silo_settings() -> SettingsFactory:
    """Settings of a small run: the arguments are tables of the configuration, as dicts."""

    def make(model: Path | str, **tables: dict[str, Any]) -> SiloSettings:
        task = tables.get("task", {})
        data = {"source": "nowhere"} | ({"label": "label"} if task.get("kind") == "classification" else {})
        train = {"batch_size": 4, "max_length": 32, "learning_rate": 1e-2, "device": "cpu"}
        return SiloSettings(
            base=BaseSettings(str(model), **tables.get("base", {})),
            lora=LoraSettings(**{"rank": 4, "alpha": 8.0} | tables.get("lora", {})),
            task=TaskSettings(**task),
            data=DataSettings(**data | tables.get("data", {})),
            train=TrainSettings(**train | tables.get("train", {})),
        )

    return make
