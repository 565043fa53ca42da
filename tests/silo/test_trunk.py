"""The frozen trunk, computed once for each row, changes no score."""

from __future__ import annotations

from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest
import torch
from torch import nn

from fedmerge.adapters import Adapter
from fedmerge.errors import ConfigError
from fedmerge.silo.base import load_base
from fedmerge.silo.evaluation import evaluate
from fedmerge.silo.lora import AdaptedModel, initial_adapter, write_adapter
from fedmerge.silo.settings import SiloSettings
from fedmerge.silo.split import Split
from fedmerge.silo.tasks import task_class
from fedmerge.silo.trunk import Cut, check_same, find_cut

Settings = Callable[..., SiloSettings]
CPU = torch.device("cpu")
LABELS = ("cars", "boats")
ROWS = [{"text": "abc" * (number % 4 + 1), "label": LABELS[number % 2]} for number in range(10)]


def prepared(settings: SiloSettings) -> tuple[AdaptedModel, Any, Split]:
    """A model with a random adapter, the task, and rows without a trunk."""
    kind = task_class(settings.task.kind)
    base = load_base(settings.base, kind.architecture, CPU)
    model, task = AdaptedModel(base, settings), kind(settings, base.tokenizer, LABELS)
    task.prepare(model)
    initial = initial_adapter(settings, LABELS)
    torch.manual_seed(3)
    write_adapter(model, Adapter({n: torch.randn_like(t) * 0.1 for n, t in initial.tensors.items()}), {})
    return model, task, Split(task.encode(ROWS), 0, CPU)


@pytest.fixture(params=["causal-lm", "classification"])
def settings(
    request: pytest.FixtureRequest, tiny_llama: Path, tiny_bert: Path, silo_settings: Settings
) -> SiloSettings:
    folder = tiny_llama if request.param == "causal-lm" else tiny_bert
    train = {"packing": False, "max_length": 16}
    return silo_settings(folder, task={"kind": request.param}, lora={"layers": "top 1"}, train=train)


def test_same_scores(settings: SiloSettings) -> None:
    model, task, split = prepared(settings)
    with_trunk = split.with_trunk(model, 4)
    assert with_trunk.trunk is not None
    assert [len(row) for row in with_trunk.trunk] == [len(example.tokens) for example in split.examples]
    whole = evaluate(model, task, split, lambda: split, 4)
    cut = evaluate(model, task, with_trunk, lambda: with_trunk, 4)
    assert cut.keys() == whole.keys()
    assert all(cut[key] == pytest.approx(whole[key], rel=1e-5) for key in whole)
    assert with_trunk.bytes > split.bytes


def test_same_gradients(settings: SiloSettings) -> None:
    """Without the base's dropout, which differs inside the trunk."""
    model, task, split = prepared(settings)
    gradients = []
    for rows in (split, split.with_trunk(model, 4)):
        for parameter in model.parameters.values():
            parameter.grad = None
        task.loss(model, rows.batch([0, 3, 5])).backward()
        gradients.append([parameter.grad for parameter in model.parameters.values()])
    torch.testing.assert_close(gradients[0], gradients[1], rtol=1e-4, atol=1e-5)


def test_the_layers_below_do_not_run(settings: SiloSettings) -> None:
    model, task, split = prepared(settings)
    with_trunk = split.with_trunk(model, 4)
    ran = []
    for index, layer in enumerate(model.cut.layers):
        layer.register_forward_hook(lambda *_, index=index: ran.append(index))
    task.loss(model, with_trunk.batch([0, 1]))
    assert ran == [2]


def test_the_base_is_put_back(settings: SiloSettings) -> None:
    model, _, split = prepared(settings)
    layers = list(model.cut.layers)
    with pytest.raises(ZeroDivisionError), model.cut.fed(torch.zeros(1, 1, 32)):
        assert model.cut.layers[0] is not layers[0]
        _ = 1 / 0
    split.with_trunk(model, 4)
    assert list(model.cut.layers) == layers
    assert not any(layer._forward_hooks for layer in layers)


def test_the_same_bits_every_time(settings: SiloSettings) -> None:
    model, _, split = prepared(settings)
    one, two = (split.with_trunk(model, 3).trunk for _ in range(2))
    assert all(torch.equal(left, right) for left, right in zip(one or (), two or (), strict=True))


def test_nothing_below_the_adapter(tiny_llama: Path, silo_settings: Settings) -> None:
    model = prepared(silo_settings(tiny_llama, lora={"layers": "0,2"}))[0]
    with pytest.raises(ConfigError, match=r"reaches down to the base's lowest layer.*lora.layers = 'top 2'"):
        _ = model.cut


class Layer(nn.Module):
    """A layer as some architectures have it: a tuple goes out."""

    kind = "some attribute that the model reads"

    def __init__(self) -> None:
        super().__init__()
        self.linear = nn.Linear(4, 4)

    def forward(self, hidden: torch.Tensor) -> tuple[torch.Tensor, str]:
        return self.linear(hidden), "attention weights"


class Tower(nn.Module):
    def __init__(self) -> None:
        super().__init__()
        self.layers = nn.ModuleList([Layer(), Layer()])

    def forward(self, hidden: torch.Tensor) -> torch.Tensor:
        for layer in self.layers:
            assert layer.kind.startswith("some")
            hidden, _ = layer(hidden)
        return hidden


def test_layers_that_give_tuples() -> None:
    tower, hidden = Tower(), torch.randn(2, 3, 4)
    cut = find_cut(tower, ["layers.1.linear"])
    trunk = cut.output(lambda: tower(hidden))
    torch.testing.assert_close(trunk, tower.layers[0].linear(hidden))
    with cut.fed(trunk):
        assert torch.equal(tower(torch.zeros(2, 3, 4)), tower.layers[1].linear(trunk))


def test_bases_that_can_not_be_cut() -> None:
    tower = Tower()
    tower.head = nn.Linear(4, 4)
    with pytest.raises(ConfigError, match="Tower can't be cut: the adapter does not lie within one list"):
        find_cut(tower, ["layers.1.linear", "head"])
    with pytest.raises(ConfigError, match="does not run its layers one by one"):
        Cut(tower.layers, 1).output(lambda: None)
    ones, mask = torch.ones(2, 3, 4), torch.ones(2, 3)
    check_same(ones, ones + 1e-6, mask)
    with pytest.raises(ConfigError, match=r"another output when cut \(relative error 1\)"):
        check_same(ones, 2 * ones, mask)
    mask[1] = 0
    check_same(ones, torch.cat([ones[:1], ones[1:] * 9]), mask)
