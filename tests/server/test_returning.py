from __future__ import annotations

from types import SimpleNamespace

import pytest

from fedmerge.server.membership import Membership
from fedmerge.server.returning import Patience, Returns
from fedmerge.server.roster import Roster
from fedmerge.wire.protocol import Card, QueryReply

from .world import FakeGrid

A, B = Card("a", 10), Card("b", 20)
ROSTER = Roster((A, B), {"a": 1, "b": 2})
AT_ONCE = Patience(2, 0.0, 0.1)


class Nodes(FakeGrid):
    """Nodes that say which silos they have; `came` says when."""

    def __init__(self, **silos):
        self.who = {int(node.removeprefix("n")): reply for node, reply in silos.items()}
        self.came = dict.fromkeys(self.who, "monday")
        super().__init__(lambda m: self.who[m.metadata.dst_node_id].to_content(), tuple(self.who))

    def get_nodes(self):
        return [SimpleNamespace(node_id=node, last_activated_at=when) for node, when in self.came.items()]


def test_a_silo_is_found_at_its_new_node():
    grid = Nodes(n1=QueryReply((A,)), n9=QueryReply((B,)))
    roster, nodes = Returns().find(grid, ROSTER, ["a", "b"], AT_ONCE)
    assert roster.homes == {"a": 1, "b": 9} and nodes == [1, 9]
    assert [message.metadata.dst_node_id for message in grid.sent] == [9]


def test_nobody_is_asked_where_nobody_is_missing():
    grid = Nodes(n1=QueryReply((A,)), n2=QueryReply((B,)), n9=QueryReply((Card("c", 1),)))
    assert Returns().find(grid, ROSTER, ["a", "b"], AT_ONCE) == (ROSTER, [1, 2, 9])
    assert grid.sent == []


def test_a_stranger_is_asked_once_and_again_when_it_comes_anew():
    grid = Nodes(n1=QueryReply((A,)), n9=QueryReply((Card("c", 1),)))
    returns = Returns()
    for _ in range(3):
        roster, _ = returns.find(grid, ROSTER, ["a", "b"], AT_ONCE)
        assert roster.homes == ROSTER.homes and roster.names == ("a", "b")
    assert len(grid.sent) == 1
    grid.who[9], grid.came[9] = QueryReply((B,)), "tuesday"
    assert returns.find(grid, ROSTER, ["a", "b"], AT_ONCE)[0].homes == {"a": 1, "b": 9}


@pytest.mark.fault(27)
def test_a_connected_silo_is_not_moved(caplog):
    roster = Roster((A, B, Card("c", 1)), {"a": 1, "b": 2})
    grid = Nodes(n1=QueryReply((A,)), n2=QueryReply((B,)), n9=QueryReply((B,)))
    found, _ = Returns().find(grid, roster, ["a", "b", "c"], AT_ONCE)
    assert found.homes == {"a": 1, "b": 2}
    assert "node 9 is left out: 'b' is connected already, as another node" in caplog.text


def test_a_named_silo_may_come_late_and_tells_its_rows():
    roster = Roster((A, Card("b", 0)), {"a": 1}, misfits={"b": "its base is another"})
    grid = Nodes(n1=QueryReply((A,)), n9=QueryReply((B,)))
    found, _ = Returns().find(grid, roster, ["a", "b"], AT_ONCE)
    assert found.cards == (A, B) and found.homes["b"] == 9 and found.misfits == {}


def test_what_is_wrong_with_a_silo_is_remembered():
    grid = Nodes(n1=QueryReply((A,)), n9=QueryReply((B,), fingerprint="e"))
    found, _ = Returns(Membership(fingerprint="f")).find(grid, ROSTER, ["a", "b"], AT_ONCE)
    assert "its base has the fingerprint 'e'" in found.misfits["b"] and found.homes == ROSTER.homes


def test_a_stranger_that_does_not_answer_ends_nothing(caplog):
    grid = Nodes(n1=QueryReply((A,)), n9=QueryReply(()))
    grid.node = lambda message: None
    assert Returns().find(grid, ROSTER, ["a", "b"], AT_ONCE)[0] == ROSTER
    assert "none of 1 nodes told which silos it has" in caplog.text


def test_in_a_simulation_nobody_is_a_stranger():
    shared = Roster((A, B), shared=True)
    grid = Nodes(n9=QueryReply((A, B), True))
    assert Returns().strangers(grid, shared, [9]) == set()
