from __future__ import annotations

import pytest

from fedmerge.server.membership import TWICE, Membership, judge
from fedmerge.wire.protocol import Card, QueryReply

FIT = {"fingerprint": "f" * 64, "versions": {"fedmerge": "0.1.3"}, "statistics": ("fisher",)}
TERMS = Membership(frozenset({"a", "b"}), "f" * 64, ("down", "up"), frozenset({"fisher"}), "0.1.0")


def reply(*cards, **changes):
    return QueryReply(cards, **{**FIT, **changes})


def test_who_fits_has_a_home():
    found = judge({7: reply(Card("b", 3, labels=("up",))), 5: reply(Card("a", 4))}, TERMS)
    assert found.homes == {"a": 5, "b": 7} and found.misfits == {}
    assert found.cards["b"].examples == 3


@pytest.mark.fault(25)
@pytest.mark.parametrize(
    ("card", "changes", "why"),
    [
        (Card("c", 1), {}, "the run does not name it"),
        (
            Card("b", 1),
            {"fingerprint": "e" * 64},
            "its base has the fingerprint 'eeeeeeeeeeeeeeee', expected",
        ),
        (Card("b", 1), {"fingerprint": ""}, "its base has the fingerprint ''"),
        (Card("b", 1), {"versions": {"fedmerge": "0.2.0"}}, "it runs fedmerge '0.2.0', the server 0.1.0"),
        (Card("b", 1), {"statistics": ()}, "it can't measure 'fisher'"),
        (Card("b", 1, labels=("left",)), {}, "it has the label 'left', which is none of the agreed ones"),
    ],
)
def test_a_misfit_is_refused_alone(card, changes, why, caplog):
    found = judge({5: reply(Card("a", 4)), 7: reply(card, **changes)}, TERMS)
    assert found.homes == {"a": 5}
    assert found.misfits[card.name].startswith(why)
    assert f"silo '{card.name}' is refused: {why}" in caplog.text


@pytest.mark.fault(27)
def test_a_name_that_two_claim_is_nobodys():
    found = judge({5: reply(Card("a", 4)), 6: reply(Card("b", 1)), 7: reply(Card("b", 2))}, TERMS)
    assert found.homes == {"a": 5} and found.misfits == {"b": TWICE}


def test_a_node_of_a_simulation_is_left_out(caplog):
    found = judge({5: reply(Card("a", 4)), 6: reply(Card("b", 1), shared=True)}, TERMS)
    assert found.homes == {"a": 5} and "node 6 is left out: it serves every silo" in caplog.text


def test_labels_must_be_told_where_they_are_agreed_on():
    terms = Membership(must_tell=True)
    found = judge({5: reply(Card("a", 4)), 6: reply(Card("b", 4, labels=()))}, terms)
    assert found.homes == {"b": 6} and "doesn't tell its labels" in found.misfits["a"]


def test_a_clone_has_no_version_to_hold_against_it():
    assert judge({5: reply(Card("a", 4), versions={"fedmerge": "unknown"})}, TERMS).homes == {"a": 5}
