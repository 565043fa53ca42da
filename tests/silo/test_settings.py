from __future__ import annotations

import dataclasses
import re
from typing import Any

import pytest

from fedmerge.errors import ConfigError
from fedmerge.silo.checks import key_of
from fedmerge.silo.settings import (
    BaseSettings,
    DataSettings,
    LoraSettings,
    SiloSettings,
    TaskSettings,
    TrainSettings,
)

BASE = BaseSettings("builtin")
DATA = DataSettings("builtin")
TRAIN = TrainSettings(steps=1)

REFUSED = [
    (BASE, "model", "", "base.model = '': expected text that is not empty"),
    (BASE, "model", 3, "base.model = 3: expected text"),
    (BASE, "dtype", "float23", "base.dtype = 'float23': expected a known value; did you mean 'float32'?"),
    (BASE, "quantization", "4-bit", "did you mean '4bit'?"),
    (BASE, "fingerprint", "abc", "base.fingerprint = 'abc': expected 64 hexadecimal digits"),
    (LoraSettings(), "rank", 0, "lora.rank = 0: expected an integer of at least 1"),
    (LoraSettings(), "rank", True, "lora.rank = True: expected an integer"),
    (LoraSettings(), "alpha", 0, "lora.alpha = 0: expected a number above 0"),
    (LoraSettings(), "alpha", float("nan"), "lora.alpha = nan: expected a number above 0"),
    (LoraSettings(), "dropout", 1.0, "lora.dropout = 1.0: expected a number of at least 0 and below 1"),
    (LoraSettings(), "rslora", 1, "lora.rslora = 1: expected true or false"),
    (LoraSettings(), "target_modules", " ", "lora.target-modules = ' ': expected text that is not empty"),
    (LoraSettings(), "layers", "top", "lora.layers = 'top': expected 'all', 'top 2'"),
    (LoraSettings(), "layers", "0,,1", "lora.layers"),
    (
        TaskSettings("classification"),
        "head",
        "labels",
        "task.head = 'labels': expected a known value; did you",
    ),
    (DATA, "source", "", "data.source = ''"),
    (DATA, "validation", 1.0, "data.validation = 1.0: expected a number of at least 0 and below 1"),
    (DATA, "validation", 0.8, "data.validation = 0.8: expected less than 1 together with data.test = 0.2"),
    (DATA, "max_rows", -1, "data.max-rows = -1: expected an integer of at least 0"),
    (DATA, "rows_per_label", 5, "data.rows-per-label = 5: expected 0, or a label column"),
    (DATA, "completion", "answer", "data.prompt = '': expected both it and data.completion ('answer')"),
    (DataSettings("x", prompt="p", completion="c"), "messages", "m", "data.messages = 'm': expected either"),
    (TRAIN, "batch_size", 0, "train.batch-size = 0: expected an integer of at least 1"),
    (TRAIN, "batch_size", 8.0, "train.batch-size = 8.0: expected an integer"),
    (TRAIN, "learning_rate", "fast", "train.learning-rate = 'fast': expected a number above 0"),
    (TRAIN, "learning_rate", float("inf"), "train.learning-rate = inf"),
    (TRAIN, "warmup", 1, "train.warmup = 1: expected a number of at least 0 and below 1"),
    (
        TRAIN,
        "schedule",
        "lineer",
        "train.schedule = 'lineer': expected a known value; did you mean 'linear'?",
    ),
    (TRAIN, "autocast", "fp8", "train.autocast = 'fp8'"),
    (TRAIN, "device", "gpu", "train.device = 'gpu': expected auto, cpu, cuda or cuda:N"),
    (TRAIN, "epochs", 1, "train.epochs = 1: expected 0 where train.steps (1) is above 0"),
]


@pytest.mark.parametrize(("settings", "field", "value", "message"), REFUSED)
def test_a_value_out_of_range_is_refused_by_its_key(
    settings: Any, field: str, value: object, message: str
) -> None:
    with pytest.raises(ConfigError, match=re.escape(message)):
        dataclasses.replace(settings, **{field: value})


@pytest.mark.parametrize(
    ("field", "value"), [("layers", "top 2"), ("layers", "0, 1,5"), ("alpha", 16), ("dropout", 0)]
)
def test_good_values_of_lora(field: str, value: object) -> None:
    assert getattr(dataclasses.replace(LoraSettings(), **{field: value}), field) == value  # type: ignore[arg-type]


@pytest.mark.parametrize("device", ["auto", "cpu", "cuda", "cuda:1"])
def test_good_devices(device: str) -> None:
    assert TrainSettings(epochs=1, device=device).device == device


def test_a_task_from_elsewhere_has_heads_of_its_own() -> None:
    assert TaskSettings("ranking", head="pairwise").head == "pairwise"


def test_classification_wants_a_label_column() -> None:
    task = TaskSettings("classification")
    with pytest.raises(ConfigError, match=r"data\.label = '': expected the column"):
        SiloSettings(BASE, LoraSettings(), task, DATA, TRAIN)
    labelled = dataclasses.replace(DATA, label="silo")
    assert SiloSettings(BASE, LoraSettings(), task, labelled, TRAIN).seed == 0


def test_key_of_uses_the_spelling_of_the_config() -> None:
    settings = SiloSettings(BASE, LoraSettings(), TaskSettings(), DATA, TRAIN)
    assert key_of(settings, "seed") == "run.seed"
    assert key_of(DATA, "rows_per_label") == "data.rows-per-label"
