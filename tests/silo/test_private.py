"""Private tensors: which they are, how they are remembered, and what a worker does with them."""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import replace
from pathlib import Path

import pytest
import torch
from hypothesis import given
from hypothesis import strategies as st

from fedmerge.adapters import Adapter
from fedmerge.errors import AdapterMismatch, CheckpointError, ConfigError
from fedmerge.silo.data import SiloData
from fedmerge.silo.lora import initial_adapter
from fedmerge.silo.order import Order
from fedmerge.silo.private import (
    PrivateStates,
    check_parts,
    completed,
    private_part,
    shared_part,
    shared_statistics,
)
from fedmerge.silo.settings import LoraSettings, SiloSettings
from fedmerge.silo.worker import Worker

Settings = Callable[..., SiloSettings]
LABELS = ("boats", "cars", "trains")
NAMES = ("q.lora_A.weight", "q.lora_B.weight", "head.weight", "head.bias")
PARTS = ("A", "B", "head")


def whole() -> Adapter:
    return Adapter({name: torch.full((2, 2), float(number)) for number, name in enumerate(NAMES)})


@given(st.sets(st.sampled_from(PARTS)))
def test_the_parts_are_all_of_the_adapter_and_have_nothing_in_common(parts: set[str]) -> None:
    shared, own = shared_part(whole(), parts), private_part(whole(), parts)
    assert not shared.tensors.keys() & own.keys()
    again = completed(shared, own).tensors
    assert again.keys() == set(NAMES)
    assert all(torch.equal(again[name], tensor) for name, tensor in whole().tensors.items())
    assert len(own) == sum(2 if part == "head" else 1 for part in parts)


def test_parts_that_are_not_there_or_leave_nothing() -> None:
    check_parts(whole(), ("A", "B"))
    headless = shared_part(whole(), ("head",))
    with pytest.raises(ConfigError, match=r"names 'head', and the adapter of this task has no such part"):
        check_parts(headless, ("B", "head"))
    with pytest.raises(ConfigError, match=r"lora.private = 'A, B': nothing is left to share"):
        check_parts(headless, ("A", "B"))


def test_statistics_of_private_tensors_stay() -> None:
    ones = torch.ones(1)
    measured = {"fisher": dict.fromkeys(NAMES, ones), "gram": {"q": ones}}
    kept = shared_statistics(measured, ("B", "head"))
    assert {name: list(values) for name, values in kept.items()} == {"fisher": [NAMES[0]], "gram": ["q"]}


# Files


def tensors(value: float) -> dict[str, torch.Tensor]:
    return {"head.bias": torch.tensor([value])}


def value_of(found: dict[str, torch.Tensor] | None) -> float | None:
    return None if found is None else found["head.bias"].item()


@pytest.fixture
def states(tmp_path: Path) -> PrivateStates:
    return PrivateStates(tmp_path / "private")


def test_a_round_reads_the_newest_state_of_an_earlier_one(states: PrivateStates) -> None:
    assert states.before("a", 1) is None
    for round in (1, 2, 5):
        states.write("a", round, tensors(round))
    found = [value_of(states.before("a", round)) for round in range(8)]
    assert found == [None, None, 1, 2, 2, 2, 5, 5]
    assert states.before("b", 8) is None


def test_a_round_that_is_run_again_starts_as_the_first_time(states: PrivateStates) -> None:
    for round in (1, 2, 3):
        states.write("a", round, tensors(round))
    assert value_of(states.before("a", 3)) == 2
    states.write("a", 2, tensors(-2))  # from here on, everything is run again
    assert value_of(states.before("a", 3)) == -2
    assert value_of(states.before("a", 9)) == -2
    assert value_of(states.before("a", 2)) == 1


def test_silos_of_any_name_have_files_of_their_own(states: PrivateStates, tmp_path: Path) -> None:
    names = ["../../outside", "..", "a/b", "a%2Fb", ".hidden", "klinik ü", "x" * 400, "x" * 401]
    for number, name in enumerate(names):
        states.write(name, 1, tensors(number))
    assert [value_of(states.before(name, 2)) for name in names] == list(range(len(names)))
    assert [path.name for path in tmp_path.iterdir()] == ["private"]


def test_a_half_written_file_is_none(states: PrivateStates) -> None:
    states.write("a", 1, tensors(1))
    (states.path("a", 2).parent / ".0002.safetensors.1a2b3c4d").write_bytes(b"half")
    assert value_of(states.before("a", 9)) == 1


def test_a_damaged_file_is_refused_by_name(states: PrivateStates) -> None:
    states.write("a", 1, tensors(1))
    states.write("a", 2, tensors(2))
    path = states.path("a", 2)
    path.write_bytes(path.read_bytes()[:-2])
    with pytest.raises(CheckpointError, match=rf"silo 'a': .* round 2: {path} is no whole safetensors file"):
        states.before("a", 3)
    assert value_of(states.before("a", 2)) == 1


def test_another_silos_file_is_refused(states: PrivateStates) -> None:
    for silo in "ab":
        states.write(silo, 1, tensors(1))
    states.path("a", 1).replace(states.path("b", 1))
    with pytest.raises(CheckpointError, match="is not what silo 'b' kept of round 1"):
        states.before("b", 2)
    states.path("b", 1).replace(states.path("b", 3))
    with pytest.raises(CheckpointError, match="is not what silo 'b' kept of round 3"):
        states.before("b", 4)


def test_the_folder_that_states_lie_in_must_be_there(tmp_path: Path) -> None:
    states = PrivateStates(tmp_path / "gone" / "private")
    for use in (lambda: states.before("a", 1), lambda: states.write("a", 1, tensors(1))):
        with pytest.raises(CheckpointError, match=r"gone is not there.*run.output an absolute path"):
            use()
    assert not (tmp_path / "gone").exists()


def test_what_the_disk_refuses_is_said(states: PrivateStates) -> None:
    states.folder.mkdir()
    (states.folder / "a").write_text("a file where a folder should be")
    with pytest.raises(CheckpointError, match="silo 'a': its private tensors can't be written"):
        states.write("a", 1, tensors(1))


# A worker


def rows(silo: str, count: int) -> list[dict[str, str]]:
    labels = LABELS[:2] if silo == "a" else LABELS[1:]
    return [{"text": f"{silo} {labels[n % 2]} {'x' * (n % 7)}", "label": labels[n % 2]} for n in range(count)]


def silos() -> dict[str, SiloData]:
    return {name: SiloData(name, rows(name, 12), rows(name, 4), rows(name, 6)) for name in "ab"}


def order(silo: str = "a", **changes: object) -> Order:
    return replace(Order(silo, round=1, epochs=1, splits=("validation",), labels=LABELS), **changes)


MakeSettings = Callable[[str], SiloSettings]


@pytest.fixture
def settings(tiny_bert: Path, silo_settings: Settings) -> MakeSettings:
    def make(private: str) -> SiloSettings:
        task = {"kind": "classification", "head": "linear"}
        return silo_settings(
            tiny_bert, task=task, lora={"layers": "top 2", "dropout": 0.1, "private": private}
        )

    return make


def same(one: Adapter, two: Adapter) -> bool:
    return one.tensors.keys() == two.tensors.keys() and all(
        torch.equal(tensor, two.tensors[name]) for name, tensor in one.tensors.items()
    )


@pytest.mark.parametrize("private", ["head", "B", "A", "A, B", "B, head"])
def test_a_silo_trains_everything_and_sends_what_is_shared(
    private: str, settings: MakeSettings, states: PrivateStates
) -> None:
    plain, personal = settings(""), settings(private)
    initial, parts = initial_adapter(plain, LABELS), personal.lora.private_parts
    expected = Worker(plain, silos()).train(initial, order())
    trained = Worker(personal, silos(), states).train(shared_part(initial, parts), order())
    assert same(trained.delta, shared_part(expected.delta, parts))
    assert trained.metrics["received/validation/loss"] == expected.metrics["received/validation/loss"]
    kept = states.before("a", 2)
    assert kept is not None
    step = private_part(expected.delta, parts)
    start = private_part(initial, parts)
    assert kept.keys() == step.keys()
    assert all(torch.equal(kept[name] - start[name], step[name]) for name in kept)


def test_the_next_round_goes_on_from_the_silos_own_tensors(
    settings: MakeSettings, states: PrivateStates
) -> None:
    personal = settings("head")
    initial = initial_adapter(personal, LABELS)
    shared = shared_part(initial, ("head",))
    worker = Worker(personal, silos(), states)
    worker.train(shared, order(epochs=4))
    kept = states.before("a", 2)
    assert kept is not None
    plain = Worker(settings(""), silos()).train(completed(shared, kept), order(round=2))
    second = worker.train(shared, order(round=2))
    assert same(second.delta, shared_part(plain.delta, ("head",)))
    assert {**second.metrics, "seconds": 0} == {**plain.metrics, "seconds": 0}
    # Another process, which was not there in round 1, and the same round again: the same bits.
    again = Worker(personal, silos(), states).train(shared, order(round=2))
    assert same(again.delta, second.delta)
    assert states.before("b", 9) is None


def test_scores_are_with_the_part_of_the_round_that_made_the_adapter(
    settings: MakeSettings, states: PrivateStates
) -> None:
    personal = settings("head")
    initial = initial_adapter(personal, LABELS)
    shared = shared_part(initial, ("head",))
    worker = Worker(personal, silos(), states)
    for round in (1, 2):
        worker.train(shared, order(round=round, epochs=4))
    wholes = {0: initial}
    for round in (1, 2):
        own = states.before("a", round + 1)
        assert own is not None
        wholes[round] = completed(shared, own)
    losses = []
    for round, adapter in wholes.items():
        scores = worker.evaluate({"shared": shared, "whole": adapter}, order(round=round))
        assert scores["shared/validation/loss"] == scores["whole/validation/loss"]
        losses.append(scores["shared/validation/loss"])
    assert len(set(losses)) == 3


def test_whole_adapters_are_trained_as_they_are_in_baselines_only(
    settings: MakeSettings, states: PrivateStates
) -> None:
    personal = settings("head")
    initial = initial_adapter(personal, LABELS)
    worker = Worker(personal, silos(), states)
    for silo, stream in (("a", "alone"), ("pooled", "pooled")):
        baseline = worker.train(initial, order(silo, round=0, stream=stream))
        assert baseline.delta.tensors.keys() == initial.tensors.keys()
    assert states.before("a", 9) is None
    with pytest.raises(ConfigError, match=r"silo 'a', round 1: the broadcast has private tensors"):
        worker.train(initial, order())


def test_statistics_of_a_round_are_of_shared_tensors(settings: MakeSettings, states: PrivateStates) -> None:
    personal = settings("head")
    shared = shared_part(initial_adapter(personal, LABELS), ("head",))
    trained = Worker(personal, silos(), states).train(shared, order(statistics=("fisher",)))
    assert trained.statistics["fisher"].keys() == shared.tensors.keys()


def test_a_silo_without_a_folder_scores_whole_adapters_and_refuses_others(settings: MakeSettings) -> None:
    personal = settings("head")
    initial = initial_adapter(personal, LABELS)
    worker = Worker(personal, silos())
    assert worker.evaluate({"x": initial}, order())
    with pytest.raises(ConfigError, match=r"lora.private = 'head': the adapter has no private tensors"):
        worker.train(shared_part(initial, ("head",)), order())


def test_a_state_or_broadcast_that_does_not_fit(settings: MakeSettings, states: PrivateStates) -> None:
    personal = settings("head")
    initial = initial_adapter(personal, LABELS)
    shared = shared_part(initial, ("head",))
    worker = Worker(personal, silos(), states)
    states.write("a", 1, tensors(1))
    with pytest.raises(
        CheckpointError, match=r"silo 'a' kept .* below 2 does not fit .* \('head.bias' first"
    ):
        worker.train(shared, order(round=2))
    half = Adapter({name: t for name, t in initial.tensors.items() if name != "head.bias"}, initial.lora)
    with pytest.raises(AdapterMismatch, match=r"1 tensors are missing \['head.bias'\]"):
        worker.evaluate({"x": half}, order())


@pytest.mark.parametrize("private", ["C", "b", "head, head", "A; B", "lora_A"])
def test_texts_that_name_no_parts(private: str) -> None:
    with pytest.raises(ConfigError, match=r"lora.private = '.*': expected 'A', 'B' and 'head'"):
        LoraSettings(private=private)


@pytest.mark.parametrize(
    ("task", "private", "sentence"),
    [
        ({}, "head", r"no 'head': none trains with task.kind = 'causal-lm'"),
        ({"kind": "classification", "head": "label"}, "head", r"task.head = 'label'"),
        ({"kind": "classification", "head": "centroid"}, "B, head", r"task.head = 'centroid'"),
        ({}, "A, B", "leave something to share"),
        ({"kind": "classification", "head": "linear"}, "A, B, head", "leave something to share"),
    ],
)
def test_parts_that_a_task_does_not_have(
    task: dict[str, str], private: str, sentence: str, silo_settings: Settings
) -> None:
    with pytest.raises(ConfigError, match=sentence):
        silo_settings("builtin", task=task, lora={"private": private})
