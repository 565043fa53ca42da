"""What training promises: only the adapter moves, the same bits again, accumulation that is exact."""

from __future__ import annotations

import math
import random
import time
from collections.abc import Callable
from dataclasses import replace
from itertools import pairwise
from pathlib import Path

import numpy as np
import pytest
import torch

from fedmerge.adapters import Adapter
from fedmerge.errors import ConfigError
from fedmerge.silo import training
from fedmerge.silo.base import load_base
from fedmerge.silo.lora import AdaptedModel, initial_adapter, read_adapter, write_adapter
from fedmerge.silo.order import Order
from fedmerge.silo.seeding import derive, seed_everything
from fedmerge.silo.settings import SiloSettings, TrainSettings
from fedmerge.silo.split import Split
from fedmerge.silo.tasks import CausalLanguage
from fedmerge.silo.training import Fit, autocast_dtype, fit, learning_rate_share, steps_of

Settings = Callable[..., SiloSettings]
CPU = torch.device("cpu")
ROWS = [{"text": f"row {number}: " + "abc " * (number % 5)} for number in range(12)]
ORDER = Order("a", round=1, epochs=2)


class Bench:
    """A model, a task and rows to train on."""

    def __init__(self, settings: SiloSettings, rows: list[dict[str, str]] = ROWS) -> None:
        self.settings = settings
        base = load_base(settings.base, "causal-lm", CPU)
        self.model = AdaptedModel(base, settings, autocast_dtype(settings.train.autocast, CPU))
        self.task = CausalLanguage(settings, base.tokenizer)
        self.split = Split(self.task.encode(rows), 0, CPU)
        self.initial = initial_adapter(settings)

    def fit(self, order: Order = ORDER, **changes: object) -> tuple[Adapter, Fit]:
        write_adapter(self.model, self.initial, {})
        train = replace(self.settings.train, **changes)
        result = fit(self.model, self.task, self.split, train, order, began=time.monotonic())
        return read_adapter(self.model), result


@pytest.fixture
def bench(tiny_llama: Path, silo_settings: Settings) -> Bench:
    return Bench(silo_settings(tiny_llama, train={"packing": False}, lora={"dropout": 0.2}))


@pytest.fixture
def plain(tiny_llama: Path, silo_settings: Settings) -> Bench:
    """Without dropout."""
    return Bench(silo_settings(tiny_llama, train={"packing": False}))


def same(left: Adapter, right: Adapter) -> bool:
    return all(torch.equal(tensor, right.tensors[name]) for name, tensor in left.tensors.items())


def distance(left: Adapter, right: Adapter) -> float:
    return math.sqrt(sum(float((left.tensors[n] - right.tensors[n]).square().sum()) for n in left.tensors))


def test_the_loss_falls(plain: Bench) -> None:
    _, short = plain.fit(replace(ORDER, epochs=1))
    _, long = plain.fit(replace(ORDER, epochs=12))
    assert long.loss < short.loss - 0.3
    assert (short.steps, long.steps) == (3, 36)


def test_only_the_adapter_moves(bench: Bench) -> None:
    before = {name: p.clone() for name, p in bench.model.base.named_parameters() if not p.requires_grad}
    trained, _ = bench.fit()
    assert all(
        torch.equal(p, before[n]) for n, p in bench.model.base.named_parameters() if not p.requires_grad
    )
    assert len(before) > 10
    assert all(not torch.equal(t, bench.initial.tensors[n]) for n, t in trained.tensors.items())


def test_same_seeds_same_bits(bench: Bench) -> None:
    """With dropout, and whatever was trained or drawn in between."""
    first, fitted = bench.fit()
    bench.fit(Order("b", round=3, epochs=1), learning_rate=0.1)
    torch.rand(7)
    again, fitted_again = bench.fit()
    assert same(first, again)
    assert fitted == fitted_again


@pytest.mark.parametrize(
    "change",
    [{"silo": "b"}, {"round": 2}, {"seed": 1}, {"stream": "alone"}],
    ids=lambda change: next(iter(change)),
)
def test_every_part_of_the_seed_counts(bench: Bench, change: dict[str, object]) -> None:
    first, _ = bench.fit()
    other, _ = bench.fit(replace(ORDER, **change))
    assert not same(first, other)


def test_all_generators_are_seeded() -> None:
    draws = []
    for seed in (1, 1, 2):
        seed_everything(seed, 1, "a", "")
        draws.append((random.random(), float(np.random.rand()), torch.rand(1).item()))  # noqa: NPY002
    assert draws[0] == draws[1]
    assert all(one != two for one, two in zip(draws[0], draws[2], strict=True))
    assert torch.are_deterministic_algorithms_enabled()
    assert len({derive(0, 1, "a", ""), derive(0, 1, "a", "", "rows"), derive(0, 1, "", "a")}) == 3


def test_accumulation_is_the_large_batch(plain: Bench) -> None:
    """Rows are of unequal length: the mean must be over tokens, not over batches."""
    large, fit_large = plain.fit(batch_size=4, accumulate=1)
    small, fit_small = plain.fit(batch_size=1, accumulate=4)
    assert fit_small.steps == fit_large.steps == 6
    assert fit_small.loss == pytest.approx(fit_large.loss, rel=1e-5)
    assert distance(large, small) < 2e-3 * distance(large, plain.initial)


def test_the_last_step_of_an_epoch_is_smaller(plain: Bench) -> None:
    _, result = plain.fit(batch_size=5, accumulate=2)
    assert result.steps == 4  # 12 rows: 10 and 2, twice


def test_steps_go_over_epochs(plain: Bench) -> None:
    epochs, by_epochs = plain.fit(replace(ORDER, epochs=2))
    steps, by_steps = plain.fit(replace(ORDER, epochs=0, steps=6))
    assert same(epochs, steps)
    assert by_epochs == by_steps
    _, more = plain.fit(replace(ORDER, epochs=0, steps=11))
    assert more.steps == 11


def test_every_epoch_is_another_permutation(plain: Bench) -> None:
    batches = plain.split.shuffled(4, seed=5)
    first, second = ([row for _ in range(3) for row in next(batches)] for _ in range(2))
    assert sorted(first) == sorted(second) == list(range(12))
    assert first != second


def test_proximal_term_pulls_back(plain: Bench) -> None:
    free, _ = plain.fit(replace(ORDER, epochs=4), max_gradient_norm=0.0)
    held, _ = plain.fit(replace(ORDER, epochs=4), max_gradient_norm=0.0, proximal=100.0)
    assert distance(held, plain.initial) < 0.7 * distance(free, plain.initial)


def test_proximal_gradient(plain: Bench) -> None:
    """mu times the way from the received adapter, added to the gradient."""
    write_adapter(plain.model, plain.initial, {})
    trainer = training._Trainer(plain.model, plain.task, replace(plain.settings.train, proximal=0.5), 1)
    for parameter in plain.model.parameters.values():
        parameter.grad = torch.ones_like(parameter)
        parameter.data += 2.0
    trainer._pull()
    for parameter in plain.model.parameters.values():
        torch.testing.assert_close(parameter.grad, torch.full_like(parameter, 2.0))


def test_clipping(plain: Bench, monkeypatch: pytest.MonkeyPatch) -> None:
    norms: list[float] = []

    def clip(parameters: list[torch.Tensor], most: float) -> None:
        norms.append(most)

    monkeypatch.setattr(training.nn.utils, "clip_grad_norm_", clip)
    plain.fit(max_gradient_norm=0.0)
    assert not norms
    plain.fit(max_gradient_norm=0.25)
    assert set(norms) == {0.25}


def test_gradient_checkpointing_gives_the_same(tiny_llama: Path, silo_settings: Settings) -> None:
    lora = {"dropout": 0.2}
    whole = Bench(silo_settings(tiny_llama, lora=lora))
    saving = Bench(silo_settings(tiny_llama, lora=lora, train={"checkpointing": True}))
    assert saving.model.base.is_gradient_checkpointing
    one, two = whole.fit()[0], saving.fit()[0]
    assert distance(one, two) < 1e-4 * distance(one, whole.initial)


@pytest.mark.parametrize("name", ["bf16", "fp16"])
def test_autocast(name: str, tiny_llama: Path, silo_settings: Settings) -> None:
    low = Bench(silo_settings(tiny_llama, train={"autocast": name}))
    assert low.model.run(low.split.batch([0])).logits.dtype == autocast_dtype(name, CPU)
    trained, result = low.fit(replace(ORDER, epochs=4))
    exact, full = Bench(silo_settings(tiny_llama)).fit(replace(ORDER, epochs=4))
    assert {tensor.dtype for tensor in trained.tensors.values()} == {torch.float32}
    assert result.loss == pytest.approx(full.loss, rel=0.02)
    assert distance(trained, exact) < distance(exact, low.initial)


def test_autocast_auto_asks_the_device(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(torch.cpu, "get_capabilities", lambda: {"avx512_bf16": True})
    assert autocast_dtype("auto", CPU) is torch.bfloat16
    monkeypatch.setattr(torch.cpu, "get_capabilities", dict)
    assert autocast_dtype("auto", CPU) is None
    assert autocast_dtype("none", CPU) is None
    monkeypatch.setattr(torch.cuda, "is_bf16_supported", lambda including_emulation: not including_emulation)
    assert autocast_dtype("auto", torch.device("cuda")) is torch.bfloat16


@pytest.mark.parametrize("schedule", ["constant", "linear", "cosine"])
def test_schedules(schedule: str) -> None:
    shares = [
        learning_rate_share(step, 20, TrainSettings(schedule=schedule, warmup=0.2)) for step in range(20)
    ]
    assert shares[:4] == [0.25, 0.5, 0.75, 1.0]
    assert shares[4] == 1.0
    assert all(0 < share <= 1 for share in shares)
    assert all(one >= two for one, two in pairwise(shares[4:]))
    assert (shares[-1] == 1.0) == (schedule == "constant")


def test_the_schedule_sets_the_learning_rate(plain: Bench) -> None:
    write_adapter(plain.model, plain.initial, {})
    trainer = training._Trainer(plain.model, plain.task, plain.settings.train, 4)
    rates = []
    for _ in range(4):
        trainer.step([plain.split.batch([0, 1])])
        rates.append(trainer._optimizer.param_groups[0]["lr"])
    assert rates == pytest.approx([1e-2, 7.5e-3, 5e-3, 2.5e-3])


def test_a_deadline_stops_the_training(plain: Bench) -> None:
    write_adapter(plain.model, plain.initial, {})
    order = replace(ORDER, deadline_seconds=5.0)
    train = plain.settings.train
    late = fit(plain.model, plain.task, plain.split, train, order, began=time.monotonic() - 6)
    assert late.steps == 0
    assert math.isnan(late.loss)
    assert same(read_adapter(plain.model), plain.initial)
    assert fit(plain.model, plain.task, plain.split, train, order, began=time.monotonic()).steps > 0


def test_a_loss_that_is_not_finite(plain: Bench) -> None:
    next(iter(plain.initial.tensors.values())).fill_(torch.nan)
    message = r"silo 'a', round 1, step 1: the loss is nan; try a lower train.learning-rate \(it is 0.01\)$"
    with pytest.raises(ConfigError, match=message):
        plain.fit()
    assert not plain.model.network.training


def test_an_adapter_that_is_not_finite(plain: Bench, monkeypatch: pytest.MonkeyPatch) -> None:
    """The last step has no loss after it that would tell."""

    def overflow(trainer: training._Trainer, batches: object) -> float:
        trainer._parameters[0].data.fill_(torch.inf)
        return 1.0

    monkeypatch.setattr(training._Trainer, "step", overflow)
    message = "step 1: the adapter is not finite any more; .*, or train.autocast = 'none'"
    with pytest.raises(ConfigError, match=message):
        plain.fit(replace(ORDER, epochs=0, steps=1), autocast="bf16")


@pytest.mark.parametrize(("epochs", "steps"), [(0, 0), (1, 1)])
def test_one_amount_of_training(epochs: int, steps: int, plain: Bench) -> None:
    with pytest.raises(ConfigError, match="exactly one of epochs and steps"):
        steps_of(plain.split, plain.settings.train, replace(ORDER, epochs=epochs, steps=steps))


def test_no_rows(plain: Bench) -> None:
    with pytest.raises(ConfigError, match="silo 'a', round 1: the silo has no training rows"):
        steps_of(Split([], 0, CPU), plain.settings.train, ORDER)
