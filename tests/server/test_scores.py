from __future__ import annotations

import math

import pytest
import torch
from flwr.app import MetricRecord

from fedmerge.server.reading import finite_norm, numbers_of
from fedmerge.server.scores import metric_of, summarize


def scores(**values):
    return {"received/validation/" + name: value for name, value in values.items()}


def test_a_summary():
    replies = {
        "b": scores(accuracy=0.5, loss=2.0, count=30),
        "a": scores(accuracy=0.9, loss=1.0, count=10),
        "c": scores(accuracy=0.0, count=0),
        "d": {"train_loss": 3.0},
    }
    summary = summarize(replies, "received", "validation")
    assert summary.metric == "accuracy" and summary.higher_is_better
    assert list(summary.silos.items()) == [("a", 0.9), ("b", 0.5)]
    assert (
        summary.mean == pytest.approx(0.7) and summary.pooled == pytest.approx(0.6) and summary.worst == 0.5
    )
    loss = summarize(replies, "received", "validation", "loss")
    assert loss.worst == 2.0 and not loss.higher_is_better
    assert summarize(replies, "received", "test") is None
    assert summarize({}, "received", "validation") is None
    assert (
        metric_of(["a/test/bits_per_byte", "a/test/loss", "b/test/accuracy"], "a", "test") == "bits_per_byte"
    )


def test_comparison_and_nan():
    good, bad, broken = (
        summarize({"a": scores(bits_per_byte=value, count=1)}, "received", "validation")
        for value in (1.5, 1.7, math.nan)
    )
    assert good.better_than(bad) and not bad.better_than(good)
    assert broken.better_than(None) and good.better_than(broken) and not broken.better_than(good)
    assert not broken.better_than(broken)
    both = summarize({"a": scores(accuracy=math.nan), "b": scores(accuracy=0.2)}, "received", "validation")
    assert math.isnan(both.worst)


def test_one_silo_can_neither_choose_the_figure_nor_break_the_sum():
    replies = {name: scores(bits_per_byte=1.5, loss=1.0, count=10) for name in ("a", "b", "c")}
    replies["c"] |= scores(accuracy=1e9)
    assert summarize(replies, "received", "validation").metric == "bits_per_byte"
    record = MetricRecord({"received/validation/loss": 1e308, "x": -math.inf, "y": 2})
    read = numbers_of(record)
    assert math.isnan(read["received/validation/loss"]) and math.isnan(read["x"]) and read["y"] == 2.0
    assert math.isnan(summarize({"a": read, "b": read}, "received", "validation").mean)


def test_the_length_of_very_long_deltas_is_no_error():
    tensors = {"a": torch.tensor([1e200], dtype=torch.float64), "b": torch.tensor([3.0])}
    assert finite_norm(tensors) == 1e200
