"""MergeStrategy in a Flower app of one's own: no roster, and no fedmerge in the client."""

from __future__ import annotations

import numpy as np
import pytest
from flwr.app import ArrayRecord, Error, Message, MetricRecord, RecordDict
from flwr.serverapp.strategy import FedAvg

from fedmerge.errors import RoundFailed
from fedmerge.server.strategy import MergeStrategy
from fedmerge.wire.protocol import Sender, failure_content, reply_content
from fedmerge.wire.records import from_record

from .world import (
    FakeGrid,
    bits,
    initial,
    streaming,
    tensors,
)


def stranger(message: Message) -> RecordDict:
    """A ClientApp as in Flower's own examples: full weights back, and its number of examples."""
    assert message.content["config"]["server-round"] >= 1
    weights = message.content["arrays"].to_torch_state_dict()
    node = message.metadata.dst_node_id
    if message.metadata.message_type == "evaluate":
        return RecordDict({"metrics": MetricRecord({"accuracy": node / 100, "num-examples": node})})
    trained = {name: value + node * 0.01 for name, value in weights.items()}
    metrics = MetricRecord({"train_loss": 1.0 / node, "num-examples": node})
    return RecordDict({"arrays": ArrayRecord(trained), "metrics": metrics})


@pytest.mark.parametrize("wrap", [streaming, FakeGrid])
def test_it_stands_where_fedavg_stood(wrap):
    ours = MergeStrategy(replies="weights").start(wrap(stranger, nodes=(1, 2, 5)), initial(), num_rounds=2)
    flowers = FedAvg().start(FakeGrid(stranger, nodes=(1, 2, 5)), initial(), num_rounds=2)
    for name, value in from_record(ours.arrays).items():
        assert np.allclose(value.numpy(), flowers.arrays[name].numpy(), atol=1e-6)
    assert ours.train_metrics_clientapp[2]["train_loss"] == pytest.approx(
        flowers.train_metrics_clientapp[2]["train_loss"]
    )
    assert ours.evaluate_metrics_clientapp[2]["accuracy"] == pytest.approx(
        flowers.evaluate_metrics_clientapp[2]["accuracy"]
    )


def test_a_strangers_app_that_sends_deltas():
    def node(message: Message) -> RecordDict:
        name = f"clinic-{message.metadata.dst_node_id}"
        delta = tensors(message.metadata.dst_node_id, 0.1)
        return reply_content(delta, 5, sender=Sender(name) if name == "clinic-7" else None)

    strategy = MergeStrategy(evaluate=False)
    strategy.start(streaming(node, nodes=(7, 8)), initial(), num_rounds=1)
    assert [reply.silo for reply in strategy.last_replies] == ["clinic-7", "node-8"]


@pytest.mark.parametrize("name", ["x" * 201, "a\nb", "\x1b[2J"])
def test_a_silo_with_an_ugly_name_goes_by_its_node(name):
    node = lambda message: reply_content(tensors(1, 0.1), 5, sender=Sender(name))  # noqa: E731
    strategy = MergeStrategy(evaluate=False, wait_seconds=0)
    with pytest.raises(RoundFailed, match=r"node-7 \(the silo name .* has"):
        strategy.start(streaming(node, nodes=(7, 8)), initial(), num_rounds=1)


def test_tensors_keep_their_positions():
    """Flower's older apps send lists: their names are positions, and "10" sorts before "2"."""
    names = [str(position) for position in range(12)]
    arrays = ArrayRecord([np.full(3, float(position)) for position in range(12)])

    def node(message: Message) -> RecordDict:
        return RecordDict({"arrays": message.content["arrays"], "metrics": MetricRecord({"num-examples": 1})})

    result = MergeStrategy(replies="weights", evaluate=False).start(FakeGrid(node), arrays, num_rounds=2)
    assert list(result.arrays) == names
    assert [array[0] for array in result.arrays.to_numpy_ndarrays()] == list(range(12))


@pytest.mark.parametrize("backwards", [False, True])
def test_two_nodes_under_one_name_are_both_refused(backwards):
    def node(message: Message) -> RecordDict:
        silo = "clinic" if message.metadata.dst_node_id != 9 else ""
        bad = {"num-examples": 0} if message.metadata.dst_node_id == 7 else {}
        content = reply_content(tensors(1, 0.1), 5, sender=Sender(silo))
        content["metrics"].update(bad)
        return content

    strategy = MergeStrategy(evaluate=False, quorum=0.3)
    order = (lambda replies: replies[::-1]) if backwards else (lambda replies: replies)
    strategy.start(streaming(node, nodes=(7, 8, 9), order=order), initial(), num_rounds=1)
    assert [reply.silo for reply in strategy.last_replies] == ["node-9"]
    assert {refusal.silo for refusal in strategy.refused} == {"clinic"}


def test_an_evaluation_survives_bad_nodes(caplog):
    def node(message: Message):
        if message.metadata.message_type == "train":
            return stranger(message)
        answers = {
            1: RecordDict({"metrics": MetricRecord({"accuracy": 0.5, "num-examples": 1})}),
            2: Error(8),
            3: failure_content(Sender(failure="ValueError")),
            4: RecordDict({"metrics": MetricRecord({"accuracy": 0.9, "num-examples": -1})}),
        }
        return answers[message.metadata.dst_node_id]

    result = MergeStrategy(replies="weights").start(
        streaming(node, nodes=(1, 2, 3, 4)), initial(), num_rounds=1
    )
    assert dict(result.evaluate_metrics_clientapp[1]) == {"accuracy": 0.5}
    assert "evaluation at node 3: failed with 'ValueError'" in caplog.text


def test_no_evaluation_answers_no_metrics():
    result = MergeStrategy(replies="weights").start(
        streaming(lambda m: stranger(m) if m.metadata.message_type == "train" else Error(8)),
        initial(),
        num_rounds=1,
    )
    assert result.evaluate_metrics_clientapp == {}


def test_records_may_have_other_names_as_long_as_there_is_one_of_each():
    def node(message: Message) -> RecordDict:
        content = stranger(message)
        return RecordDict({"model": content["arrays"], "numbers": content["metrics"]})

    named, ours = (
        MergeStrategy(replies="weights", evaluate=False).start(streaming(each), initial(), num_rounds=1)
        for each in (stranger, node)
    )
    assert bits(named.arrays) == bits(ours.arrays)


def test_it_does_not_wait_for_ever_for_nodes():
    strategy = MergeStrategy(min_nodes=3, wait_seconds=0.05)
    with pytest.raises(RoundFailed, match=r"2 nodes are connected after 0\.05 seconds, expected at least 3"):
        strategy.start(streaming(stranger), initial(), num_rounds=1)


def test_a_round_is_opened_before_it_is_closed():
    with pytest.raises(RoundFailed, match="round 1 was not opened: configure_train comes first"):
        MergeStrategy().aggregate_train(1, [])
