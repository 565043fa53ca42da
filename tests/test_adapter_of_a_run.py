"""The adapter that a run leaves, loaded by plain PEFT on the plain base, gives the run's own scores again."""

from __future__ import annotations

import json
import math
from pathlib import Path
from typing import Any

import pytest
import torch
from peft import PeftModel
from safetensors.torch import load_file
from torch.nn.functional import cosine_similarity
from transformers import AutoModel, AutoModelForCausalLM, AutoTokenizer

from fedmerge.config import read_config
from fedmerge.engine.local import run_local
from fedmerge.silo.base import base_folder
from fedmerge.silo.data import load_silos

WORDS = {
    "weather": [
        "rain",
        "sunny today",
        "will it snow",
        "wind in the north",
        "storm warning",
        "clouds at noon",
    ],
    "music": ["play a song", "next track", "louder please", "some jazz", "stop the music", "the new album"],
    "banking": [
        "my balance",
        "pay the bill",
        "freeze the card",
        "transfer money",
        "interest rate",
        "a new card",
    ],
}


def run(flat: dict[str, Any], folder: Path) -> tuple[dict[str, Any], Any]:
    """A short run in one process; its result and its config."""
    always = {"run.output": str(folder), "run.baselines": "", "strategy.shadows": "", "engine.workers": 1}
    config = read_config({**always, "train.autocast": "none", "train.warmup": 0.0, **flat})
    run_local(config)
    return json.loads((folder / "result.json").read_text(encoding="utf-8")), config


def test_bits_per_byte_of_the_built_in_base(tmp_path: Path) -> None:
    result, config = run({"train.steps": 3, "data.silos": "unittest, xml"}, tmp_path / "run")

    base = base_folder(config.silo.base)
    model = AutoModelForCausalLM.from_pretrained(base, dtype=torch.float32)
    model = PeftModel.from_pretrained(model, tmp_path / "run" / "adapter").eval()
    for silo, rows in load_silos(config.silo.data).items():
        nats = total = 0
        stream: list[int] = []
        for row in rows.test:
            raw = row["text"].encode("utf-8")
            stream += [byte + 3 for byte in raw] + [1]
            total += len(raw)
        opened = torch.tensor([1, *stream])
        with torch.no_grad():
            for at in range(0, len(stream), 256):
                piece = opened[at : at + 257]
                logits = model(input_ids=piece[None, :-1]).logits[0]
                nats += torch.nn.functional.cross_entropy(logits, piece[1:], reduction="sum").item()
        expected = result["candidates"]["merged"]["test"][silo]
        assert nats / math.log(2) / total == pytest.approx(expected, rel=1e-4)


@pytest.fixture
def rows(tmp_path: Path) -> Path:
    """Three silos by topic, with two labels each."""
    path = tmp_path / "rows.jsonl"
    lines = [
        json.dumps({"text": f"{text} {number}", "label": f"{topic}_{number % 2}", "topic": topic})
        for topic, texts in WORDS.items()
        for number, text in enumerate(texts * 4)
    ]
    path.write_text("\n".join(lines), encoding="utf-8")
    return path


@pytest.mark.parametrize("head", ["label", "linear"])
def test_accuracy_of_an_encoder(head: str, rows: Path, minilm: str, tmp_path: Path) -> None:
    flat = {
        "base.model": minilm,
        "task.kind": "classification",
        "task.head": head,
        "lora.layers": "top 2",
        "data.source": str(rows),
        "data.label": "label",
        "data.partition": "by(column='topic')",
        "train.steps": 6,
        "strategy.space": "product()",
    }
    result, config = run(flat, tmp_path / "run")
    tokenizer = AutoTokenizer.from_pretrained(minilm)
    base = AutoModel.from_pretrained(minilm).eval()

    def embed(model: torch.nn.Module, texts: list[str]) -> torch.Tensor:
        batch = tokenizer(texts, padding=True, return_tensors="pt")
        with torch.no_grad():
            hidden = model(**batch).last_hidden_state
        mask = batch["attention_mask"][..., None]
        return (hidden * mask).sum(1) / mask.sum(1)

    labels = sorted(f"{topic}_{parity}" for topic in WORDS for parity in (0, 1))
    names = embed(base, [label.replace("_", " ") for label in labels])
    tensors = load_file(tmp_path / "run" / "adapter" / "adapter_model.safetensors")
    model = PeftModel.from_pretrained(base, tmp_path / "run" / "adapter").eval()
    for silo, data in load_silos(config.silo.data).items():
        found = embed(model, [row["text"] for row in data.test])
        if head == "label":
            logits = 20 * cosine_similarity(found[:, None], names[None], dim=-1)
        else:
            logits = found @ tensors["head.weight"].T + tensors["head.bias"]
        wanted = torch.tensor([labels.index(row["label"]) for row in data.test])
        accuracy = (logits.argmax(1) == wanted).double().mean().item()
        assert accuracy == pytest.approx(result["candidates"]["merged"]["test"][silo])
