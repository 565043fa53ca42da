"""With an identity, only what a silo of the roster has signed takes part; all else leaves no trace."""

from __future__ import annotations

import re
from dataclasses import replace

import pytest
import torch
from flwr.app import ConfigRecord, Error, Message, RecordDict

from fedmerge.engine.identity import server_identity
from fedmerge.errors import RoundFailed
from fedmerge.server.identity import Identity, Member
from fedmerge.server.roster import ask
from fedmerge.server.signed_grid import SignedGrid
from fedmerge.wire.protocol import FEDMERGE, Card, QueryReply, Sender, failure_content, read_instruction
from fedmerge.wire.records import to_record

from .signing import (
    FEDERATION,
    KEYS,
    RUN,
    SERVER,
    credentials_of,
    identity_of,
    resigned,
    signed_node,
    signed_run,
)
from .world import ABC, FakeGrid, bits, node_of, roster_of, tensors

A = "base_model.model.q.lora_A.weight"
FINGERPRINT = "f" * 64


@pytest.fixture(scope="module")
def without_b() -> dict[str, bytes]:
    """The bits of two rounds in which silo b does not answer."""
    with server_identity(run_id=1):
        return bits(signed_run(signed_node({"b": lambda *_: None}), rounds=2)[1].arrays)


def said(**fields):
    """Silo b changes what it says of itself, and signs that."""

    def change(content: RecordDict, message: Message) -> RecordDict:
        content[FEDMERGE].update(fields)
        return resigned(content, "b")

    return change


def unsigned(content, message):
    del content[FEDMERGE]["signature"]
    return content


def altered(content, message):
    content["arrays"][A] = to_record({A: tensors(7)[A]})[A]
    return content


def one_bit(content, message):
    data = bytearray(content["arrays"][A].data)
    data[-1] ^= 1
    content["arrays"][A].data = bytes(data)
    return content


def heavier(content, message):
    content["metrics"]["num-examples"] += 1
    return content


def better(content, message):
    content["metrics"]["received/validation/bits_per_byte"] = 0.0
    return content


def more(content, message):
    content["statistics/fisher"] = content["arrays"]
    return content


def of_another_federation(content, message):
    return resigned(content, "b", federation="lung-study")


def as_an_evaluation(content, message):
    return resigned(content, "b", kind="evaluate")


def by_a(content, message):
    return resigned(content, "a")


def in_the_name_of_a(content, message):
    content[FEDMERGE]["silo"] = "a"
    return resigned(content, "b")


def what_a_signed(content, message):
    content[FEDMERGE]["silo"] = "a"
    return resigned(content, "a")


def a_stranger(content, message):
    content[FEDMERGE]["silo"] = "x"
    return resigned(content, "b")


def a_crash_nobody_signed(content, message):
    return failure_content(Sender("b", 1, failure="OSError", code="data/missing"))


def a_signed_refusal(content, message):
    return credentials_of("b").sign(
        failure_content(Sender("b", failure="PolicyError", code="policy/steps")), message
    )


def no_sender(content, message):
    del content[FEDMERGE]
    return content


def an_odd_sender(content, message):
    content[FEDMERGE]["round"] = "1"
    return content


BAD = {
    "24: a past round": (said(round=-7), "reply/stale", "it is of round -7, this is round"),
    "24: a round to come": (said(round=9), "reply/round", "it is of round 9, this is round"),
    "25: another base": (said(fingerprint="e" * 64), "reply/base", "its base is another: fingerprint 'eeee"),
    "26: another run": (said(run="ffff"), "reply/run", f"it is of run 'ffff', this is '{RUN}'"),
    "26: another federation": (of_another_federation, "reply/forged", "its signature is not that of 'b'"),
    "27: in a's name": (in_the_name_of_a, "reply/forged", "its signature is not that of 'a'"),
    "27: what a signed": (what_a_signed, "reply/silo", "it is of 'a', the message went to 'b'"),
    "27: signed by a": (by_a, "reply/forged", "its signature is not that of 'b'"),
    "27: a stranger": (a_stranger, "reply/stranger", "'x' is no silo of the roster"),
    "28: one bit of a tensor": (one_bit, "reply/forged", "forged, or changed"),
    "28: another tensor": (altered, "reply/forged", "forged, or changed"),
    "28: the weight": (heavier, "reply/forged", "forged, or changed"),
    "28: a score": (better, "reply/forged", "forged, or changed"),
    "28: a record more": (more, "reply/forged", "forged, or changed"),
    "28: another kind of message": (as_an_evaluation, "reply/forged", "forged, or changed"),
    "29: a used nonce": (said(nonce="0" * 32), "reply/replayed", "it answers no message that is out"),
    "unsigned": (unsigned, "reply/unsigned", "it is not signed$"),
    "no sender": (no_sender, "reply/unsigned", "it is not signed$"),
    "an odd sender": (an_odd_sender, "reply/records", "'round' is str, expected int"),
    "a crash nobody signed": (a_crash_nobody_signed, "reply/unsigned", "says that it failed with 'OSError'"),
    "a signed refusal": (a_signed_refusal, "policy/steps", r"failed with 'PolicyError' \(policy/steps\)"),
    "nothing": (lambda *_: RecordDict(), "reply/unsigned", "it is not signed$"),
    "Flower's error": (lambda *_: Error(8), "flower/8", "the ClientApp crashed"),
}  # fmt: skip


@pytest.mark.parametrize("case", BAD)
def test_what_is_not_proven_leaves_no_trace(case, without_b):
    """Faults 24 to 29: refused by name and reason, counted, and the bits are those of the run without b."""
    change, code, reason = BAD[case]
    strategy, result = signed_run(signed_node({"b": change}), rounds=2, fingerprint=FINGERPRINT)
    assert bits(result.arrays) == without_b
    assert [(refusal.silo, refusal.round, refusal.code) for refusal in strategy.refused] == [
        ("b", 1, code),
        ("b", 2, code),
    ]
    for report, refusal in zip(strategy.rounds, strategy.refused, strict=True):
        assert re.search(reason, refusal.reason), refusal.reason
        assert report.refusals == report.to_dict()["refusals"] == {code: 1}
        assert report.missing == [] and list(report.admitted) == ["a", "c"]


def test_all_that_is_signed_takes_part():
    strategy, _ = signed_run(signed_node(), rounds=2)
    assert strategy.refused == [] and [list(report.admitted) for report in strategy.rounds] == [list(ABC)] * 2
    assert strategy.rounds[0].bytes_up > 3 * 4 * 20


def test_the_result_is_that_of_a_run_without_signatures():
    from .world import run

    plain = run(node_of(), rule="ties(density=0.5)", rounds=2)[1]
    assert bits(signed_run(signed_node(), rounds=2)[1].arrays) == bits(plain.arrays)


def test_a_silo_whose_key_is_revoked_leaves_no_trace(without_b):
    """Fault 43: revoked between two runs, or in the middle of one."""
    revoked = identity_of(b=Member(KEYS["b"].public_key(), revoked=True))
    strategy, result = signed_run(signed_node(), rounds=2, identity=revoked)
    assert bits(result.arrays) == without_b
    assert [refusal.code for refusal in strategy.refused] == ["reply/revoked"] * 2


def test_a_silo_may_be_revoked_while_a_run_goes_on():
    members = dict(identity_of().members())

    def change(content, message):
        if read_instruction(message.content).round == 2:
            members["b"] = Member(KEYS["b"].public_key(), revoked=True)
        return content

    strategy, _ = signed_run(
        signed_node({"b": change}), rounds=3, identity=Identity(FEDERATION, SERVER, lambda: members)
    )
    assert [(refusal.round, refusal.code) for refusal in strategy.refused] == [
        (2, "reply/revoked"),
        (3, "reply/revoked"),
    ]


class Kept:
    """Silo b answers as the first message, whatever it is asked later."""

    def __init__(self):
        self.first = None

    def __call__(self, content, message):
        self.first = self.first or RecordDict({name: record.copy() for name, record in content.items()})
        return RecordDict({name: record.copy() for name, record in self.first.items()})


def test_a_replayed_reply_is_refused_and_counted():
    """Fault 29, and 24: what b signed in round 1 comes again in rounds 2 and 3."""
    strategy, result = signed_run(signed_node({"b": Kept()}), rounds=3)
    later = signed_node(
        {"b": lambda content, message: content if read_instruction(message.content).round == 1 else None}
    )
    assert bits(result.arrays) == bits(signed_run(later, rounds=3)[1].arrays)
    assert [(refusal.round, refusal.code) for refusal in strategy.refused] == [
        (2, "reply/replayed"),
        (3, "reply/replayed"),
    ]


class Twice(FakeGrid):
    """Delivers b's reply twice, and before it one that a stranger made up in b's name."""

    forged_first = False

    def send_and_receive(self, messages, *, timeout=None):
        messages = list(messages)
        replies = list(super().send_and_receive(messages, timeout=timeout))
        if not messages:
            return replies
        ours = next(reply for reply in replies if reply.content[FEDMERGE]["silo"] == "b")
        asked = next(m for m in messages if m.metadata.message_id == ours.metadata.reply_to_message_id)
        again = Message(
            RecordDict({name: record.copy() for name, record in ours.content.items()}), reply_to=asked
        )
        if self.forged_first:
            again.content["metrics"]["num-examples"] = 10**9
            return [again, *replies]
        return [*replies, again]


class ForgedFirst(Twice):
    forged_first = True


@pytest.mark.parametrize(("grid", "code"), [(Twice, "reply/replayed"), (ForgedFirst, "reply/forged")])
def test_a_second_reply_changes_nothing(grid, code):
    """Faults 23 and 27: a duplicate, or a forgery that comes first, and the silo's own counts once."""
    strategy, result = signed_run(signed_node(), grid=grid)
    assert bits(result.arrays) == bits(signed_run(signed_node())[1].arrays)
    assert [(refusal.silo, refusal.code) for refusal in strategy.refused] == [("b", code)]
    assert list(strategy.rounds[0].admitted) == list(ABC) and strategy.rounds[0].missing == []


class Crossed(FakeGrid):
    """Delivers a's and b's replies each as the answer to the other's message."""

    def send_and_receive(self, messages, *, timeout=None):
        replies = list(super().send_and_receive(messages, timeout=timeout))
        for one, other in zip(replies[:2], replies[1::-1], strict=True):
            one.metadata.__dict__.setdefault("_was", other.metadata.reply_to_message_id)
        for reply in replies[:2]:
            reply.metadata.__dict__["_reply_to_message_id"] = reply.metadata.__dict__["_was"]
        return replies


def test_replies_to_each_others_messages_are_refused():
    """Fault 27: whoever stands between server and silos exchanges two replies."""
    strategy, result = signed_run(signed_node(), grid=Crossed)
    alone = signed_node({"a": lambda *_: None, "b": lambda *_: None})
    assert bits(result.arrays) == bits(signed_run(alone)[1].arrays)
    assert strategy.rounds[0].refusals == {"reply/replayed": 2}


def test_when_nothing_is_proven_the_round_fails_and_the_adapter_is_intact():
    """Fault 34."""
    with pytest.raises(
        RoundFailed, match=r"0 of 3 silos gave a usable reply.*The adapter of round 0 is intact"
    ):
        signed_run(signed_node(dict.fromkeys(ABC, unsigned)))


def test_a_body_far_above_what_was_asked_is_refused_unread(without_b, monkeypatch):
    """Fault 21: no signature is looked at, and no byte hashed."""
    from fedmerge.server import verifying

    monkeypatch.setattr(verifying, "ROOM_BYTES", 2_000)

    def swollen(content, message):
        content["arrays"]["more"] = to_record({"more": torch.zeros(1000)})["more"]
        return content

    strategy, result = signed_run(signed_node({"b": swollen}), rounds=2)
    assert bits(result.arrays) == without_b
    assert [refusal.code for refusal in strategy.refused] == ["reply/too-large"] * 2


def test_the_rosters_cap_on_a_silos_weight():
    """Fault 22: b says that it has 30 rows, and the roster lets it count as 12."""
    strategy, result = signed_run(signed_node(), roster=roster_of(*ABC), rule="fedavg()")
    assert strategy.rounds[0].admitted["b"]["examples"] == 30
    roster = replace(roster_of(*ABC), caps={"b": 12, "c": 1000})
    capped, other = signed_run(signed_node(), roster=roster, rule="fedavg()")

    def lighter(content, message):
        content["metrics"]["num-examples"] = 12
        return resigned(content, "b")

    honest = signed_run(signed_node({"b": lighter}), rule="fedavg()")[1]
    assert bits(other.arrays) == bits(honest.arrays) != bits(result.arrays)
    assert capped.rounds[0].admitted["b"]["examples"] == 12
    assert capped.rounds[0].flagged == {"b": "counts as 12 of 30 rows"}


SCORED = {"shadows": "fedavg()", "shadow_scoring": "silos", "rule": "ties(density=0.5)"}


def test_scores_count_where_they_are_proven():
    def in_evaluations(content, message):
        return better(content, message) if message.metadata.message_type == "evaluate" else content

    strategy, _ = signed_run(signed_node({"b": in_evaluations}), **SCORED)
    assert list(strategy.rounds[0].admitted) == list(ABC)
    assert list(strategy.rounds[0].shadows["merged"]["silos"]) == ["a", "c"]
    strategy, _ = signed_run(signed_node(), **SCORED)
    assert list(strategy.rounds[0].shadows["merged"]["silos"]) == list(ABC)


def told(silo, **fields):
    reply = QueryReply((Card(silo, 5),), fingerprint=FINGERPRINT, device="cpu")
    content = reply.to_content()
    content[FEDMERGE].update(fields)
    return content


def queried(answers):
    """What the server hears when each node answers as told."""

    def node(message):
        silo = "abc"[message.metadata.dst_node_id - 11]
        credentials_of(silo).check(message)
        return answers[silo](message)

    return ask(SignedGrid(FakeGrid(node), identity_of()), [11, 12, 13], timeout_seconds=5)


def signed_card(name, silo=None):
    return lambda message: credentials_of(silo or name).sign(told(name), message)


@pytest.mark.parametrize(
    ("odd", "reason"),
    [
        (lambda message: told("b"), "it is not signed"),
        (signed_card("a", "b"), "silo 'b' must tell of itself alone, it tells of 'a'"),
        (
            lambda message: credentials_of("b").sign(told("b", shared=True), message),
            "must tell of itself alone",
        ),
        (lambda message: credentials_of("b").sign(told("b", silos="[]"), message), "it tells of none"),
        (lambda message: credentials_of("b").sign(told("b", silos="{"), message), "'silos' is not JSON"),
        (
            lambda message: resigned(credentials_of("b").sign(told("b"), message), "a", "query"),
            "not that of 'b'",
        ),
    ],
)
def test_the_muster_leaves_out_who_does_not_prove_its_name(odd, reason, caplog):
    """Fault 27, before round 1: a node can't take a place in the roster that is not its own."""
    answers = queried({"a": signed_card("a"), "b": odd, "c": signed_card("c")})
    assert {node: reply.silos[0].name for node, reply in answers.items()} == {11: "a", 13: "c"}
    assert "node 12 is left out: " in caplog.text and reason in caplog.text


def test_every_message_is_signed_for_its_silo_with_a_nonce_of_its_own():
    sent = []
    signed_run(signed_node(), rounds=2, grid=lambda node: FakeGrid(node, sent=sent), **SCORED)
    instructions = [read_instruction(message.content) for message in sent]
    assert [each.silo for each in instructions] == list(ABC) * 4
    assert len({each.nonce for each in instructions}) == len(instructions)
    assert {each.federation for each in instructions} == {FEDERATION}
    assert [each.asked for each in instructions[:3]] == [3, 3, 3]
    assert {each.lifetime_seconds for each in instructions} == {3600.0}


def test_whatever_breaks_the_check_is_a_refusal(without_b, monkeypatch, caplog):
    from fedmerge.server import verifying

    def broken(content, *_):
        if content[FEDMERGE]["silo"] == "b":
            raise ZeroDivisionError
        return payload(content, *_)

    payload = verifying.reply_payload
    monkeypatch.setattr(verifying, "reply_payload", broken)
    strategy, result = signed_run(signed_node(), rounds=2)
    assert bits(result.arrays) == without_b
    assert strategy.refused[0].reason == "it can't be read (ZeroDivisionError)"
    assert "broke its check" in caplog.text


def test_nobody_remembers_messages_that_are_over():
    from fedmerge.server.verifying import Verifier

    verifier = Verifier(identity_of())
    old = Message(RecordDict({"config": ConfigRecord()}), 11, "train", ttl=1e-6)
    verifier.expect(old, read_instruction(old.content))
    new = Message(RecordDict({"config": ConfigRecord({"nonce": "2"})}), 11, "train", ttl=100)
    verifier.expect(new, read_instruction(new.content))
    assert list(verifier._expected) == ["2"]
