"""What a silo measures after training: Fisher and Gram by hand, and no trace in what it trained."""

from __future__ import annotations

import time
from collections.abc import Callable
from dataclasses import replace
from pathlib import Path

import pytest
import torch

from fedmerge.adapters import Adapter
from fedmerge.errors import ConfigError
from fedmerge.silo.base import load_base
from fedmerge.silo.data import SiloData
from fedmerge.silo.lora import AdaptedModel, initial_adapter, write_adapter
from fedmerge.silo.order import Order
from fedmerge.silo.settings import SiloSettings
from fedmerge.silo.split import Split
from fedmerge.silo.statistics import Measured, _tokens, measure
from fedmerge.silo.tasks import CausalLanguage
from fedmerge.silo.worker import Worker

Settings = Callable[..., SiloSettings]
CPU = torch.device("cpu")
ROWS = [{"text": f"row {number}: " + "abc " * (number % 5)} for number in range(9)]
ORDER = Order("a", round=1, steps=2, statistics=("fisher", "gram"))
LORA = {"layers": "top 2", "dropout": 0.3, "rank": 3}


@pytest.fixture
def settings(tiny_llama: Path, silo_settings: Settings) -> SiloSettings:
    return silo_settings(tiny_llama, train={"packing": False}, lora=LORA)


@pytest.fixture
def measured(settings: SiloSettings) -> Measured:
    """A model whose B is not zero, as after training."""
    base = load_base(settings.base, "causal-lm", CPU)
    model, task = AdaptedModel(base, settings), CausalLanguage(settings, base.tokenizer)
    initial = initial_adapter(settings)
    generator = torch.Generator().manual_seed(0)
    moved = {n: t + 0.1 * torch.randn(t.shape, generator=generator) for n, t in initial.tensors.items()}
    write_adapter(model, Adapter(moved, initial.lora), {})
    split = Split(task.encode(ROWS), 0, CPU)
    return Measured(model, task, split, settings.train, ORDER, time.monotonic())


def limited(measured: Measured, rows: int, **order: object) -> Measured:
    settings = replace(measured.settings, statistics_rows=rows)
    return replace(measured, settings=settings, order=replace(measured.order, **order))


def test_fisher_is_the_mean_square_of_each_rows_gradient(measured: Measured) -> None:
    found = measure(measured)["fisher"]
    parameters = measured.model.parameters
    wanted = {name: torch.zeros_like(p) for name, p in parameters.items()}
    for row in range(len(ROWS)):
        loss = measured.task.loss(measured.model, measured.split.batch([row]))
        loss.backward()
        for name, parameter in parameters.items():
            assert parameter.grad is not None
            wanted[name] += parameter.grad.square() / len(ROWS)
            parameter.grad = None
    assert found.keys() == wanted.keys()
    for name, value in found.items():
        assert value.dtype == torch.float32 and value.shape == parameters[name].shape
        assert torch.allclose(value, wanted[name], rtol=1e-4) and (value >= 0).all() and value.any()


def test_gram_is_the_mean_of_what_b_is_fed_and_leaves_padding_out(measured: Measured) -> None:
    found = measure(measured)["gram"]
    model, rows = measured.model, []
    module = next(iter(found))
    layer = model.network.get_submodule(module + ".lora_A.default")
    handle = layer.register_forward_hook(lambda _m, _i, output: rows.append(output[0]))
    with torch.no_grad():
        for row in range(len(ROWS)):  # one by one: nothing is padded
            model.run(measured.split.batch([row]))
    handle.remove()
    x = torch.cat(rows).double()
    assert len(x) == sum(len(example.tokens) for example in measured.split.examples)
    assert torch.allclose(found[module].double(), x.T @ x / len(x), rtol=1e-5)
    assert {f"{name}.lora_B.weight" for name in found} < model.factors.keys()
    assert all(value.shape == (3, 3) and torch.equal(value, value.T) for value in found.values())
    assert 2 * len(found) == len(model.factors)


def test_so_many_rows_and_others_in_each_round(measured: Measured) -> None:
    few = limited(measured, 4)
    assert len(set(few.rows())) == 4 and few.rows() == few.rows()
    assert few.rows() != limited(measured, 4, round=2).rows()
    assert sorted(limited(measured, 0).rows()) == list(range(9))
    assert sum(batch.tokens.shape[0] for batch in few.batches(3)) == 4


def test_after_the_deadline_the_first_rows_are_measured_still(measured: Measured) -> None:
    late = replace(limited(measured, 0, deadline_seconds=1.0), began=time.monotonic() - 2)
    assert [batch.tokens.shape[0] for batch in late.batches(2)] == [2]
    assert all(value.isfinite().all() for value in measure(late)["fisher"].values())


def test_the_model_is_left_as_it_was(measured: Measured) -> None:
    before = {name: p.detach().clone() for name, p in measured.model.parameters.items()}
    measure(measured)
    assert all(
        torch.equal(p, before[name]) and p.grad is None for name, p in measured.model.parameters.items()
    )
    hooks = [len(module._forward_hooks) for module in measured.model.network.modules()]
    assert not sum(hooks)


def test_a_statistic_that_this_silo_does_not_know(measured: Measured) -> None:
    with pytest.raises(ConfigError, match=r"silo 'a', round 1: the server asks for the statistic 'hessian'"):
        measure(limited(measured, 1, statistics=("hessian",)))


def test_a_statistic_that_is_not_finite(measured: Measured) -> None:
    with torch.no_grad():
        next(iter(measured.model.parameters.values())).fill_(torch.inf)
    with pytest.raises(ConfigError, match=r"silo 'a', round 1: the 'fisher' of .* is not finite"):
        measure(limited(measured, 1))


def silos() -> dict[str, SiloData]:
    return {name: SiloData(name, [{"text": name + row["text"]} for row in ROWS], [], []) for name in "ab"}


def test_measuring_changes_no_bit_of_what_is_trained(settings: SiloSettings) -> None:
    broadcast = initial_adapter(settings)
    plain = Worker(settings, silos()).train(broadcast, replace(ORDER, statistics=()))
    busy = Worker(settings, silos())
    busy.train(broadcast, replace(ORDER, silo="b"))
    first = busy.train(broadcast, ORDER)
    assert all(torch.equal(t, first.delta.tensors[n]) for n, t in plain.delta.tensors.items())
    assert not plain.statistics and sorted(first.statistics) == ["fisher", "gram"]
    again = Worker(settings, silos()).train(broadcast, ORDER)
    for name, values in first.statistics.items():
        assert all(torch.equal(value, again.statistics[name][key]) for key, value in values.items())


def test_a_head_has_a_fisher_and_the_trunk_may_be_kept(tiny_bert: Path, silo_settings: Settings) -> None:
    labelled = [{"text": row["text"], "label": "ab"[n % 2]} for n, row in enumerate(ROWS)]
    data = {"a": SiloData("a", labelled, [], [])}
    task = {"kind": "classification", "head": "linear"}
    found = []
    for cache in (False, True):
        settings = silo_settings(tiny_bert, task=task, lora=LORA, train={"cache_trunk": cache})
        order = replace(ORDER, labels=("a", "b"))
        found.append(Worker(settings, data).train(initial_adapter(settings, ("a", "b")), order).statistics)
    plain, cached = found
    assert plain["fisher"]["head.weight"].shape == (2, 32) and plain["fisher"]["head.bias"].any()
    assert "head" not in "".join(plain["gram"])
    for name, values in plain.items():
        assert values.keys() == cached[name].keys()


def test_of_a_layer_that_sees_no_tokens_every_row_counts() -> None:
    mask = torch.tensor([[1, 1, 0], [1, 0, 0]])
    assert _tokens(torch.ones(2, 3, 4), mask).shape == (3, 4)
    assert _tokens(torch.ones(2, 4), mask).shape == (2, 4)
