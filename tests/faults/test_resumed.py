"""Fault 41: what goes on when a run does: shadows, observers and trackers, private parts, deployed silos."""

from __future__ import annotations

import json
import logging
from pathlib import Path
from typing import Any

import pytest
from flwr.app import Message

from fedmerge.config import read_config
from fedmerge.engine.executors import InProcess
from fedmerge.engine.grid import LocalGrid
from fedmerge.engine.identity import server_identity
from fedmerge.engine.local import run_local
from fedmerge.server.observer import Silent
from fedmerge.server.streaming import StreamingGrid
from fedmerge.server_app.conduct import conduct
from fedmerge.server_app.trackers import tracked
from fedmerge.wire.protocol import Card, QueryReply, read_instruction

from . import crashing
from .crashing import EXAMPLES, FINGERPRINT, Fork, changes_of, die_at, flat_of, outcome, serve

pytestmark = pytest.mark.fault(41)
Flat = dict[str, Any]


class Notes(Silent):
    """What an observer is told of; Ctrl-C at a silo's reply in a round, or at the first one."""

    def __init__(self, stop: tuple[int, str] | None = None) -> None:
        self.told: list[Any] = []
        self.stop = stop

    def run_started(self, plan):
        self.told.append("run_started")

    def reply(self, round, silo, outcome, metrics):
        if self.stop in ((round, silo), (round, "")):
            raise KeyboardInterrupt

    def round_closed(self, report):
        self.told.append(report["round"])

    def finished(self, result):
        self.told.append("finished")


def go(flat: Flat, observer=None, answer=serve, nodes=(7,)) -> dict[str, Any]:
    grid = StreamingGrid(LocalGrid(InProcess(answer), list(nodes), 1), longest_pause_seconds=0.001)
    with server_identity(1):
        return conduct(read_config(flat), grid, observer)


def test_observers_are_told_the_earlier_rounds_again_and_of_a_finished_run_nothing(tiny_base, tmp_path):
    flat = flat_of(tmp_path / "run", tiny_base)
    first, second, third = Notes((3, "")), Notes(), Notes()
    with pytest.raises(KeyboardInterrupt):
        go(flat, first)
    go(flat, second)
    result = go(flat, third)
    assert first.told == ["run_started", 1, 2]
    assert second.told == ["run_started", 1, 2, 3, 4, "finished"]
    assert third.told == [] and result["kept"]
    events = [json.loads(line) for line in (tmp_path / "run" / "events.jsonl").read_text().splitlines()]
    begun = [event["round"] for event in events if event["event"] == "round_started"]
    assert begun == [1, 2, 3, 4] and [event["event"] for event in events].count("resumed") == 1


def test_a_tracker_of_a_resumed_run_has_each_round_once(tiny_base, tmp_path):
    pytest.importorskip("tensorboard", reason="the extra is not installed")
    flat = flat_of(tmp_path / "run", tiny_base, run__trackers="tensorboard")
    for stop in ((2, ""), (4, ""), None):
        with tracked(read_config(flat), Notes(stop)) as observer:
            try:
                go(flat, observer)
            except KeyboardInterrupt:
                assert stop
    [file] = (tmp_path / "run" / "tensorboard").iterdir()
    from tensorboard.backend.event_processing.event_file_loader import EventFileLoader

    events = list(EventFileLoader(str(file)).Load())
    steps = [
        event.step
        for event in events
        for value in (event.summary.value if event.HasField("summary") else ())
        if value.tag == "seconds/train"
    ]
    assert steps == [1, 2, 3, 4]


@pytest.mark.parametrize("scoring", ["silos", "final"])
def test_shadows_that_the_silos_score_in_rounds(tiny_base, tmp_path, scoring):
    """A round that ends while its shadows are scored is merged again, and they are scored again."""
    made = [flat_of(tmp_path / name, tiny_base, strategy__shadow_scoring=scoring) for name in ("one", "two")]
    go(made[0])

    def answer(message: Message) -> Message:
        if message.metadata.message_type == "evaluate" and read_instruction(message.content).round >= 2:
            raise KeyboardInterrupt
        return serve(message)

    with pytest.raises(KeyboardInterrupt):
        go(made[1], answer=answer)
    crashing.asks().clear()
    crashing.run(made[1])
    asked = list(crashing.asks())
    assert asked.count("train") == (3 * 2 if scoring == "silos" else 0)
    assert outcome(tmp_path / "two") == outcome(tmp_path / "one")


HOMES = {11: "a", 12: "b", 13: "c"}


def hospital(homes: dict[int, str], orders: list[Any]):
    """Silos that are nodes of their own."""

    def answer(message: Message) -> Message:
        node = message.metadata.dst_node_id
        if message.metadata.message_type == "query":
            card = Card(homes[node], EXAMPLES[homes[node]], validation=5)
            return Message(QueryReply((card,), fingerprint=FINGERPRINT).to_content(), reply_to=message)
        order = read_instruction(message.content)
        assert order.silo == homes[node]
        orders.append(order)
        return serve(message)

    return answer


def test_in_a_deployment_silos_are_found_again_at_other_nodes(tiny_base, tmp_path, caplog, monkeypatch):
    """The run keeps its silos: one that was not there when it began has no part in it."""
    monkeypatch.setattr("secrets.token_hex", lambda size: "ab" * size)  # the run's name, which is sealed too
    changes = {"strategy__fraction": 1.0, "strategy__wait_seconds": 0.3, "strategy__quorum": 0.6}
    made = [flat_of(tmp_path / name, tiny_base, **changes, lora__private="") for name in ("one", "two")]
    go(made[0], answer=hospital(HOMES, []), nodes=HOMES)
    with pytest.raises(KeyboardInterrupt):
        go(made[1], Notes((3, "c")), hospital(HOMES, []), HOMES)
    assert not list((tmp_path / "two").rglob("deltas/*")), "closed rounds leave no replies"
    moved: dict[int, str] = {21: "c", 22: "d", 23: "a", 24: "b"}
    orders: list[Any] = []
    with caplog.at_level(logging.WARNING):
        go(made[1], answer=hospital(moved, orders), nodes=moved)
    assert any("silo 'd' is refused: the run does not name it" in record.message for record in caplog.records)
    assert {order.silo for order in orders} == {"a", "b", "c"}
    one, two = outcome(tmp_path / "one"), outcome(tmp_path / "two")
    for found in (one, two):
        found.pop("environment.json")
    assert two == one


def test_a_silo_that_is_away_when_a_deployed_run_goes_on(tiny_base, tmp_path, caplog):
    changes = {"strategy__fraction": 1.0, "strategy__wait_seconds": 0.3, "strategy__quorum": 0.6}
    flat = flat_of(tmp_path / "run", tiny_base, **changes)
    with pytest.raises(KeyboardInterrupt):
        go(flat, Notes((3, "c")), hospital(HOMES, []), HOMES)
    left = {11: "a", 12: "b"}
    with caplog.at_level(logging.WARNING):
        result = go(flat, answer=hospital(left, []), nodes=left)
    assert any(
        "'c' takes part in the run, and has not answered" in record.message for record in caplog.records
    )
    assert result["silos"] == ["a", "b", "c"]
    assert [report["missing"] for report in result["rounds"]] == [[], [], ["c"], ["c"]]


def test_a_deployed_run_killed_in_its_last_evaluation_asks_nobody_to_train(tiny_base, tmp_path):
    """Its last replies are gone, and nothing needs them: shadows are scored in no deployment's end."""
    flat = flat_of(tmp_path / "run", tiny_base, strategy__fraction=1.0)
    silos = hospital(HOMES, [])

    def answer(message: Message) -> Message:
        if message.metadata.message_type == "evaluate":
            raise KeyboardInterrupt
        return silos(message)

    with pytest.raises(KeyboardInterrupt):
        go(flat, answer=answer, nodes=HOMES)
    orders: list[Any] = []
    assert go(flat, answer=hospital(HOMES, orders), nodes=HOMES)["kept"]
    assert not [order for order in orders if order.steps]


@pytest.fixture
def real(tiny_flat, tmp_path):
    """A run of real silos on a tiny base, in which they keep a part to themselves, or not."""

    def make(name: str, private: str) -> Flat:
        also = {"lora__private": "B", "strategy__space": "factors()"} if private else {}
        return tiny_flat(
            run__output=str(tmp_path / name), run__resume="auto", train__learning_rate=0.02, **also
        )

    return make


@pytest.mark.parametrize("private", ["", "B"])
def test_private_parts_and_baselines_are_what_they_would_have_been(real, tmp_path, private):
    run_local(read_config(real("one", private)))
    for stop in ((1, "rocks"), (2, "ships")):
        with pytest.raises(KeyboardInterrupt):
            run_local(read_config(real("two", private)), Notes(stop))
    run_local(read_config(real("two", private)))
    one, two = outcome(tmp_path / "one"), outcome(tmp_path / "two")
    for found in (one, two):
        found["result"].pop("personal", None)
        found["result"].pop("notes", None)
    assert two == one


@pytest.mark.skipif(not hasattr(__import__("os"), "fork"), reason="there is no fork here")
def test_real_silos_killed_twice_through_the_local_engine(real, tmp_path):
    def run(flat: Flat, answer: Any) -> Any:
        return run_local(read_config(flat))

    changes = changes_of(real("one", ""), run)
    flat = real("two", "")
    for number in (changes // 3, changes // 2):
        assert not Fork(flat, die_at(number, tmp_path / "two"), work=run).wait()
    assert Fork(flat, work=run).wait()
    assert outcome(tmp_path / "two") == outcome(tmp_path / "one")


def test_a_folder_without_any_round_is_begun(tiny_base, tmp_path):
    flat = flat_of(tmp_path / "run", tiny_base)
    with pytest.raises(KeyboardInterrupt):
        go(flat, answer=lambda message: (_ for _ in ()).throw(KeyboardInterrupt()))
    assert go(flat)["kept"] and Path(tmp_path / "run" / "result.json").is_file()
