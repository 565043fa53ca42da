"""Scores do not depend on how rows are batched, nor on what was done to the model before."""

from __future__ import annotations

from collections.abc import Callable
from pathlib import Path

import pytest
import torch

from fedmerge.silo.base import load_base
from fedmerge.silo.evaluation import evaluate
from fedmerge.silo.lora import AdaptedModel, initial_adapter, write_adapter
from fedmerge.silo.memory import Memory
from fedmerge.silo.settings import SiloSettings
from fedmerge.silo.split import Split
from fedmerge.silo.tasks import CausalLanguage

CPU = torch.device("cpu")
ROWS = [{"text": "abc" * (number % 4 + 1)} for number in range(7)]


@pytest.fixture
def bench(
    tiny_llama: Path, silo_settings: Callable[..., SiloSettings]
) -> tuple[AdaptedModel, CausalLanguage, Split]:
    settings = silo_settings(tiny_llama, train={"packing": False}, lora={"dropout": 0.5})
    base = load_base(settings.base, "causal-lm", CPU)
    model, task = AdaptedModel(base, settings), CausalLanguage(settings, base.tokenizer)
    write_adapter(model, initial_adapter(settings), {})
    return model, task, Split(task.encode(ROWS), 0, CPU)


def test_the_batch_size_makes_no_difference(bench: tuple[AdaptedModel, CausalLanguage, Split]) -> None:
    model, task, split = bench
    one, many = (evaluate(model, task, split, lambda: split, size) for size in (1, 4))
    assert all(one[key] == pytest.approx(many[key], rel=1e-5) for key in many)
    assert one["count"] == sum(len(row["text"]) for row in ROWS)


def test_no_dropout_and_no_gradients(bench: tuple[AdaptedModel, CausalLanguage, Split]) -> None:
    model, task, split = bench
    model.train(True)
    first = evaluate(model, task, split, lambda: split, 4)
    assert first == evaluate(model, task, split, lambda: split, 4)
    assert all(parameter.grad is None for parameter in model.parameters.values())


def test_training_rows_are_not_encoded_without_need(
    bench: tuple[AdaptedModel, CausalLanguage, Split],
) -> None:
    model, task, split = bench
    evaluate(model, task, split, lambda: pytest.fail("the training rows were asked for"), 4)


def test_rows_of_like_length_share_a_batch(bench: tuple[AdaptedModel, CausalLanguage, Split]) -> None:
    batches = list(bench[2].in_order(3))
    assert [batch.tokens.shape[0] for batch in batches] == [3, 3, 1]
    lengths = [length for batch in batches for length in batch.mask.sum(dim=1).tolist()]
    assert lengths == sorted(lengths)
    assert sum(batch.count for batch in batches) == sum(example.count for example in bench[2].examples)


def test_memory_forgets_what_was_unused_for_longest(caplog: pytest.LogCaptureFixture) -> None:
    memory: Memory[str] = Memory(10, len)
    made: list[str] = []

    def get(key: str, size: int) -> str:
        return memory.get(key, lambda: made.append(key) or key * size)

    for key, size in [("a", 4), ("b", 4), ("a", 4), ("c", 4), ("a", 4), ("b", 4)]:
        assert get(key, size) == key * size
    assert made == ["a", "b", "c", "b"]
    assert get("d", 11) == "d" * 11
    assert "takes 11 bytes, more than the 10 kept" in caplog.text
    get("b", 4)
    assert made == ["a", "b", "c", "b", "d"]
