"""The facade: what one worker answers depends on the order, the broadcast and the rows alone."""

from __future__ import annotations

import hashlib
import os
import subprocess
import sys
import textwrap
import threading
from collections.abc import Callable
from dataclasses import replace
from pathlib import Path

import pytest
import torch

from fedmerge.adapters import Adapter
from fedmerge.errors import AdapterMismatch, ConfigError, PolicyError
from fedmerge.silo import worker as worker_module
from fedmerge.silo.data import SiloData
from fedmerge.silo.lora import initial_adapter
from fedmerge.silo.settings import (
    BaseSettings,
    DataSettings,
    LoraSettings,
    SiloSettings,
    TaskSettings,
    TrainSettings,
)
from fedmerge.silo.worker import Order, Worker, difference

Settings = Callable[..., SiloSettings]
LABELS = ("boats", "cars", "trains")


def rows(silo: str, count: int) -> list[dict[str, str]]:
    labels = LABELS[:2] if silo == "a" else LABELS[1:]
    return [
        {"text": f"{silo} {labels[n % 2]} " + "x" * (n % 7), "label": labels[n % 2]} for n in range(count)
    ]


def silos() -> dict[str, SiloData]:
    return {
        name: SiloData(name, rows(name, 10 + 2 * n), rows(name, 4), rows(name, 6))
        for n, name in enumerate("ab")
    }


def order(silo: str = "a", **changes: object) -> Order:
    return replace(Order(silo, round=1, epochs=1, splits=("validation", "test"), labels=LABELS), **changes)


def digest(adapter: Adapter) -> str:
    total = hashlib.sha256()
    for name in sorted(adapter.tensors):
        total.update(name.encode() + adapter.tensors[name].numpy().tobytes())
    return total.hexdigest()


@pytest.fixture
def settings(tiny_bert: Path, silo_settings: Settings) -> SiloSettings:
    task = {"kind": "classification", "head": "linear"}
    return silo_settings(tiny_bert, task=task, lora={"layers": "top 2", "dropout": 0.1})


@pytest.fixture
def worker(settings: SiloSettings) -> Worker:
    return Worker(settings, silos())


@pytest.fixture
def broadcast(settings: SiloSettings) -> Adapter:
    return initial_adapter(settings, LABELS)


def test_cards(worker: Worker) -> None:
    assert worker.cards() == [
        {"name": "a", "examples": 10, "validation": 4, "test": 6, "labels": ["boats", "cars"]},
        {"name": "b", "examples": 12, "validation": 4, "test": 6, "labels": ["cars", "trains"]},
    ]
    assert worker.device == "cpu"
    assert worker.gpu_seen == torch.cuda.is_available()
    assert len(worker.fingerprint) == 64


def test_without_labels(tiny_llama: Path, silo_settings: Settings) -> None:
    worker = Worker(silo_settings(tiny_llama), silos())
    assert [card["labels"] for card in worker.cards()] == [None, None]
    metrics = worker.train(initial_adapter(worker.settings), order(labels=(), splits=("test",))).metrics
    assert metrics.keys() == {
        *(f"received/test/{name}" for name in ("loss", "count", "bits_per_byte")),
        "train_loss", "steps", "seconds",
    }  # fmt: skip


def test_trained(worker: Worker, broadcast: Adapter) -> None:
    before = digest(broadcast)
    trained = worker.train(broadcast, order())
    assert digest(broadcast) == before
    assert trained.examples == 10
    assert trained.metrics["steps"] == 3
    assert trained.metrics["received/test/count"] == 6
    assert {"received/validation/accuracy", "received/test/loss", "train_loss"} < trained.metrics.keys()
    assert trained.delta.tensors.keys() == broadcast.tensors.keys()
    assert trained.delta.lora == broadcast.lora
    assert all(tensor.any() for tensor in trained.delta.tensors.values())


def test_training_helps(worker: Worker, broadcast: Adapter) -> None:
    delta = worker.train(broadcast, order(epochs=8)).delta
    trained = Adapter({n: t + delta.tensors[n] for n, t in broadcast.tensors.items()}, broadcast.lora)
    scores = worker.evaluate({"before": broadcast, "after": trained}, order(splits=("test",)))
    assert scores["after/test/loss"] < scores["before/test/loss"]
    assert len(scores) == 6


def test_nothing_leaks_from_silo_to_silo(settings: SiloSettings, broadcast: Adapter) -> None:
    """Dropout, optimizer, generators, mode, caches: a fresh worker gives the same bits."""
    alone = Worker(settings, silos()).train(broadcast, order("b"))
    busy = Worker(settings, silos())
    busy.evaluate({"x": broadcast}, order("b"))
    busy.train(broadcast, order("a", round=7, epochs=2, stream="alone"))
    torch.rand(3)
    after = busy.train(broadcast, order("b"))
    assert digest(alone.delta) == digest(after.delta)
    assert {**alone.metrics, "seconds": 0} == {**after.metrics, "seconds": 0}
    with_the_only = Worker(settings, {"b": silos()["b"]}).train(broadcast, order(""))
    assert digest(with_the_only.delta) == digest(alone.delta)


def test_the_trunk_gives_the_same_scores(settings: SiloSettings, broadcast: Adapter) -> None:
    plain = Worker(settings, silos())
    cached = Worker(replace(settings, train=replace(settings.train, cache_trunk=True)), silos())
    assert cached.evaluate({"x": broadcast}, order()) == pytest.approx(
        plain.evaluate({"x": broadcast}, order()), rel=1e-5
    )
    first, second = (digest(cached.train(broadcast, order()).delta) for _ in range(2))
    assert first == second


def test_a_forgotten_split_is_made_again_alike(
    settings: SiloSettings, broadcast: Adapter, monkeypatch: pytest.MonkeyPatch
) -> None:
    settings = replace(settings, train=replace(settings.train, cache_trunk=True))
    first = digest(Worker(settings, silos()).train(broadcast, order()).delta)
    monkeypatch.setattr(worker_module, "MEMORY_BYTES", 1)
    assert digest(Worker(settings, silos()).train(broadcast, order()).delta) == first


def test_pooled(worker: Worker, broadcast: Adapter, settings: SiloSettings) -> None:
    assert worker.train(broadcast, order("pooled", splits=("test",))).examples == 22
    scores = {name: worker.evaluate({"x": broadcast}, order(name)) for name in ("a", "b", "pooled")}
    assert scores["pooled"]["x/test/count"] == 12
    mean = (scores["a"]["x/test/loss"] + scores["b"]["x/test/loss"]) / 2
    assert scores["pooled"]["x/test/loss"] == pytest.approx(mean, rel=1e-5)
    with pytest.raises(ConfigError, match="no silo 'pooled' here"):
        Worker(settings, {"a": silos()["a"]}).evaluate({}, order("pooled"))


def test_a_split_without_rows_has_no_scores(settings: SiloSettings, broadcast: Adapter) -> None:
    data = {"a": replace(silos()["a"], validation=[])}
    scores = Worker(settings, data).evaluate({"x": broadcast}, order())
    assert {name.split("/")[1] for name in scores} == {"test"}


def test_centroids_in_a_worker(tiny_bert: Path, silo_settings: Settings) -> None:
    settings = silo_settings(tiny_bert, task={"kind": "classification", "head": "centroid"})
    broadcast = initial_adapter(settings, LABELS)
    scores = Worker(settings, silos()).train(broadcast, order(splits=("test",))).metrics
    assert scores["received/test/accuracy"] > 0.5


def test_deltas_are_exact() -> None:
    received = Adapter({"a": torch.tensor([1.0, 1e8]), "b": torch.tensor([1.0], dtype=torch.bfloat16)})
    trained = Adapter({"a": torch.tensor([1.0 + 2**-23, 1e8]), "b": torch.tensor([1.25])})
    delta = difference(trained, received).tensors
    assert delta["a"].tolist() == [2**-23, 0.0]
    assert delta["b"].dtype == torch.bfloat16
    assert delta["b"].item() == 0.25


@pytest.mark.parametrize("splits", [(), ("validation",)])
def test_a_deadline_that_is_over_before_the_first_step_sends_no_delta_of_zeros(
    worker: Worker, broadcast: Adapter, splits: tuple[str, ...]
) -> None:
    with pytest.raises(PolicyError, match="are over before there is anything to send") as caught:
        worker.train(broadcast, order(deadline_seconds=1e-9, splits=splits))
    assert caught.value.code == "late"


def test_scoring_ends_at_its_deadline(worker: Worker, broadcast: Adapter) -> None:
    with pytest.raises(PolicyError) as caught:
        worker.evaluate({"received": broadcast}, order(deadline_seconds=1e-9, splits=("validation",)))
    assert caught.value.code == "late"


def test_a_site_s_limit_of_steps_holds_for_epochs_too(worker: Worker, broadcast: Adapter) -> None:
    for wishes in ({"steps": 3, "epochs": 0}, {"steps": 0, "epochs": 100}):
        with pytest.raises(
            PolicyError, match=r"optimizer steps are asked for: policy\.max-steps is 2"
        ) as caught:
            worker.train(broadcast, order(max_steps=2, **wishes))
        assert caught.value.code == "policy/max-steps"


def test_orders_from_several_threads(worker: Worker, broadcast: Adapter) -> None:
    expected = {name: digest(worker.train(broadcast, order(name)).delta) for name in "ab"}
    found: list[tuple[str, str]] = []

    def work(name: str) -> None:
        found.append((name, digest(worker.train(broadcast, order(name)).delta)))

    threads = [threading.Thread(target=work, args=(name,)) for name in "abab"]
    for thread in threads:
        thread.start()
    for thread in threads:
        thread.join()
    assert sorted(found) == sorted([*expected.items()] * 2)


def failing(settings: SiloSettings, given: Order) -> None:
    Worker(settings, silos()).train(initial_adapter(settings, LABELS), given)


@pytest.mark.parametrize(
    ("given", "message"),
    [
        (order("c"), r"no silo 'c' here; .*There are: a, b, pooled"),
        (order(""), r"no silo '' here"),
        (order(splits=("tset",)), r"silo 'a': no split 'tset'; did you mean 'test'"),
        (
            order(labels=("boats", "trains", "x")),
            r"silo 'a', train: label 'cars' is not among the 3 agreed",
        ),
        (order(labels=()), r"at least two labels"),
        (order(epochs=0), r"silo 'a', round 1: exactly one of epochs and steps"),
    ],
)
def test_orders_that_can_not_be_done(given: Order, message: str, settings: SiloSettings) -> None:
    with pytest.raises(ConfigError, match=message):
        failing(settings, given)


def test_settings_that_can_not_work(settings: SiloSettings) -> None:
    with pytest.raises(ConfigError, match="at least one silo"):
        Worker(settings, {})
    with pytest.raises(ConfigError, match=r"train.max-length = 129: the base takes at most 128 tokens"):
        failing(replace(settings, train=replace(settings.train, max_length=129)), order())
    with pytest.raises(ConfigError, match="lowest layer"):
        bottom = replace(settings.lora, layers="all")
        failing(replace(settings, lora=bottom, train=replace(settings.train, cache_trunk=True)), order())


def test_a_broadcast_of_other_labels(worker: Worker, settings: SiloSettings) -> None:
    with pytest.raises(AdapterMismatch, match=r"'head.weight' has shape \(2, 32\), .* has \(3, 32\)"):
        worker.train(initial_adapter(settings, LABELS[:2]), order())


@pytest.mark.slow
@pytest.mark.skipif(not hasattr(os, "fork"), reason="no fork on this system")
def test_a_fork_of_a_loaded_worker_trains(tiny_bert: Path, tmp_path: Path) -> None:
    """As the engine does it, here with two threads a fork: OpenMP threads of the parent would hang them."""
    script = f"""
        import multiprocessing, threading
        from fedmerge.silo.data import SiloData
        from fedmerge.silo.lora import initial_adapter
        from fedmerge.silo.settings import *
        from fedmerge.silo.worker import Order, Worker
        settings = SiloSettings(
            BaseSettings({str(tiny_bert)!r}), LoraSettings(), TaskSettings("classification"),
            DataSettings("x", label="label"), TrainSettings(max_length=16, threads=2, device="cpu"),
        )
        rows = [{{"text": "ab" * 5, "label": "ab"[n % 2]}} for n in range(6)]
        worker = Worker(settings, {{"s": SiloData("s", rows, [], [])}})
        worker.load()
        assert threading.active_count() == 1, threading.enumerate()
        broadcast = initial_adapter(settings, ["a", "b"])
        def work(done):
            trained = worker.train(broadcast, Order("s", epochs=1, labels=("a", "b")))
            done.put(trained.metrics["train_loss"])
        context = multiprocessing.get_context("fork")
        done = context.Queue()
        children = [context.Process(target=work, args=(done,)) for _ in range(2)]
        for child in children: child.start()
        losses = [done.get(timeout=100) for _ in children]
        for child in children: child.join()
        assert losses[0] == losses[1], losses
    """
    path = tmp_path / "forks.py"
    path.write_text(textwrap.dedent(script))
    environment = {**os.environ, "PYTHONPATH": os.pathsep.join(sys.path)}
    environment.pop("OMP_NUM_THREADS", None)
    subprocess.run([sys.executable, str(path)], check=True, timeout=200, env=environment)


@pytest.mark.slow
@pytest.mark.parametrize("cached", [False, True])
def test_minilm_gives_the_same_bits_again(cached: bool, minilm: str) -> None:
    """With LoRA dropout and the base's own, and another silo in between."""
    settings = SiloSettings(
        BaseSettings(minilm),
        LoraSettings(dropout=0.1, layers="top 2"),
        TaskSettings("classification"),
        DataSettings("x", label="label"),
        TrainSettings(batch_size=4, max_length=32, cache_trunk=cached, device="cpu"),
    )
    broadcast = initial_adapter(settings, LABELS)
    worker = Worker(settings, silos())
    first = worker.train(broadcast, order("a"))
    worker.train(broadcast, order("b"))
    assert digest(worker.train(broadcast, order("a")).delta) == digest(first.delta)
    assert digest(Worker(settings, silos()).train(broadcast, order("a")).delta) == digest(first.delta)


@pytest.mark.slow
def test_minilm_learns_labels_by_their_names(minilm: str) -> None:
    settings = SiloSettings(
        BaseSettings(minilm),
        LoraSettings(layers="top 2"),
        TaskSettings("classification"),
        DataSettings("x", label="label"),
        TrainSettings(batch_size=4, max_length=32, device="cpu"),
    )
    scores = Worker(settings, silos()).evaluate(
        {"base": initial_adapter(settings, LABELS)}, order("pooled", splits=("test",))
    )
    assert scores["base/test/accuracy"] == 1.0
