"""Labels of text: mean embeddings under three heads."""

from __future__ import annotations

from collections.abc import Callable
from pathlib import Path

import pytest
import torch
from torch.nn.functional import cosine_similarity, cross_entropy
from transformers import AutoModel

from fedmerge.adapters import Adapter
from fedmerge.errors import ConfigError
from fedmerge.silo.base import load_base
from fedmerge.silo.lora import AdaptedModel, initial_adapter, write_adapter
from fedmerge.silo.settings import SiloSettings
from fedmerge.silo.tasks import Classification
from fedmerge.silo.tasks.classification import embed
from fedmerge.silo.tasks.task import Batch, collate

Settings = Callable[..., SiloSettings]
CPU = torch.device("cpu")
LABELS = ("fast_cars", "slow_boats", "trains")
ROWS = [
    {"text": "a red car", "label": "fast_cars"},
    {"text": "a boat", "label": "slow_boats"},
    {"text": "cars and cars and cars", "label": "fast_cars"},
]


def ready(settings: SiloSettings) -> tuple[AdaptedModel, Classification, Adapter]:
    """A model with a random adapter in it, and the task."""
    base = load_base(settings.base, "encoder", CPU)
    model, task = AdaptedModel(base, settings), Classification(settings, base.tokenizer, LABELS)
    task.prepare(model)
    torch.manual_seed(1)
    initial = initial_adapter(settings, LABELS)
    adapter = Adapter({name: torch.randn_like(t) * 0.2 for name, t in initial.tensors.items()}, initial.lora)
    write_adapter(model, adapter, {n: t for n, t in initial.tensors.items() if n.startswith("head.")})
    return model, task, adapter


def classify(make: Settings, model: Path, head: str) -> SiloSettings:
    return make(model, task={"kind": "classification", "head": head})


def batch_of(task: Classification, rows: list[dict[str, str]]) -> Batch:
    return collate(task.encode(rows), 0, CPU)


def plain_embedding(folder: Path, text: str) -> torch.Tensor:
    """The mean of a text's hidden states, by transformers alone."""
    numbers = torch.tensor([[*(byte + 3 for byte in text.encode()), 1]])
    with torch.no_grad():
        return AutoModel.from_pretrained(folder)(input_ids=numbers).last_hidden_state.mean(dim=1)[0]


def test_embeddings_ignore_padding(tiny_bert: Path, silo_settings: Settings) -> None:
    model, task, _ = ready(classify(silo_settings, tiny_bert, "label"))
    with torch.no_grad():
        together = embed(model, batch_of(task, ROWS))
        alone = torch.cat([embed(model, batch_of(task, [row])) for row in ROWS])
    torch.testing.assert_close(together, alone)


def test_label_head(tiny_bert: Path, silo_settings: Settings) -> None:
    model, task, _ = ready(classify(silo_settings, tiny_bert, "label"))
    batch = batch_of(task, ROWS)
    names = torch.stack([plain_embedding(tiny_bert, name.replace("_", " ")) for name in LABELS])
    with torch.no_grad():
        logits = 20 * cosine_similarity(embed(model, batch)[:, None], names[None], dim=2)
        loss = task.loss(model, batch)
        scores = task.score(model, [batch], [])
    torch.testing.assert_close(loss, cross_entropy(logits, torch.tensor([0, 1, 0]), reduction="sum"))
    assert scores["accuracy"] == (logits.argmax(1) == torch.tensor([0, 1, 0])).double().mean().item()
    assert scores["loss"] == pytest.approx(loss.item() / 3)
    assert scores["count"] == 3
    assert model.head == {}


def test_linear_head(tiny_bert: Path, silo_settings: Settings) -> None:
    model, task, adapter = ready(classify(silo_settings, tiny_bert, "linear"))
    batch = batch_of(task, ROWS)
    embedding = embed(model, batch)
    logits = embedding @ adapter.tensors["head.weight"].T + adapter.tensors["head.bias"]
    loss = task.loss(model, batch)
    torch.testing.assert_close(loss, cross_entropy(logits, torch.tensor([0, 1, 0]), reduction="sum"))
    loss.backward()
    assert all(parameter.grad is not None for parameter in model.parameters.values())


def test_centroid_head(tiny_bert: Path, silo_settings: Settings) -> None:
    """Rows that are the training rows lie nearest to their own class; the loss is the label head's."""
    model, task, _ = ready(classify(silo_settings, tiny_bert, "centroid"))
    label_model, label_task, _ = ready(classify(silo_settings, tiny_bert, "label"))
    batch, train = batch_of(task, ROWS[:2]), [batch_of(task, ROWS[:1]), batch_of(task, ROWS[1:2])]
    with torch.no_grad():
        scores = task.score(model, [batch], iter(train))
        label_scores = label_task.score(label_model, [batch], [])
    assert scores["accuracy"] == 1.0
    assert scores["loss"] == pytest.approx(label_scores["loss"])


def test_a_label_without_training_rows_is_never_guessed(tiny_bert: Path, silo_settings: Settings) -> None:
    model, task, _ = ready(classify(silo_settings, tiny_bert, "centroid"))
    strange = batch_of(task, [{"text": "a train", "label": "trains"}])
    with torch.no_grad():
        assert task.score(model, [strange], [batch_of(task, ROWS)])["accuracy"] == 0.0
    with pytest.raises(ConfigError, match="'centroid' needs training rows"):
        task.score(model, [strange], [])


def test_long_texts_keep_their_end_token(tiny_bert: Path, silo_settings: Settings) -> None:
    settings = silo_settings(tiny_bert, task={"kind": "classification"}, train={"max_length": 6})
    task = Classification(settings, load_base(settings.base, "encoder", CPU).tokenizer, LABELS)
    example = task.encode([{"text": "much too long", "label": "trains"}])[0]
    assert example.tokens.tolist() == [*(byte + 3 for byte in b"much "), 1]
    assert example.target.item() == 2


def test_an_unknown_label(tiny_bert: Path, silo_settings: Settings) -> None:
    _, task, _ = ready(classify(silo_settings, tiny_bert, "label"))
    with pytest.raises(
        ConfigError, match=r"label 'tarins' is not among the 3 agreed .*did you mean 'trains'"
    ):
        task.encode([{"text": "x", "label": "tarins"}])


@pytest.mark.parametrize("labels", [(), ("a",), ("a", "a")])
def test_too_few_labels(labels: tuple[str, ...], silo_settings: Settings, tiny_bert: Path) -> None:
    with pytest.raises(ConfigError, match="at least two labels, each once"):
        Classification(classify(silo_settings, tiny_bert, "label"), None, labels)
