"""A refused reply leaves no trace: the result is bit-identical to that of a run without the silo."""

from __future__ import annotations

import math
import re

import pytest
import torch
from flwr.app import Array, ArrayRecord, ConfigRecord, Error, Message, RecordDict

from fedmerge.server.strategy import MergeStrategy
from fedmerge.wire.protocol import Sender, failure_content
from fedmerge.wire.records import to_record

from .world import (
    ABC,
    EXAMPLES,
    FakeGrid,
    bits,
    examples,
    initial,
    node_of,
    roster_of,
    run,
    tensors,
)


def replaced(name: str, value: torch.Tensor):
    def change(content: RecordDict) -> RecordDict:
        content["arrays"][name] = to_record({name: value})[name]
        return content

    return change


def without(name: str):
    def change(content: RecordDict) -> RecordDict:
        del content["arrays"][name]
        return content

    return change


def no_examples(content: RecordDict) -> RecordDict:
    del content["metrics"]["num-examples"]
    return content


def sender(**fields):
    def change(content: RecordDict) -> RecordDict:
        content["fedmerge"] = Sender(**{"silo": "b", "round": 1, **fields}).to_config()
        return content

    return change


def raw(**fields):
    def change(content: RecordDict) -> RecordDict:
        array = content["arrays"][A]
        given = {
            "dtype": array.dtype,
            "shape": array.shape,
            "stype": array.stype,
            "data": array.data,
            **fields,
        }
        content["arrays"][A] = Array(**given)
        return content

    return change


def record(key, value):
    def change(content: RecordDict) -> RecordDict:
        del content[key]
        if value is not None:
            content[key] = value
        return content

    return change


def more(**records):
    def change(content: RecordDict) -> RecordDict:
        for name, value in records.items():
            content[name] = value
        return content

    return change


def swollen(content: RecordDict) -> RecordDict:
    """Fault 21: a body of 2 MB where 80 bytes were asked."""
    content["more"] = to_record({"more": torch.zeros(2**19)})
    return content


A = "base_model.model.q.lora_A.weight"
GOOD = tensors(7)[A]
NAN, INF = GOOD.clone(), GOOD.clone()
NAN[1, 2] = float("nan")
INF[0, :2] = float("inf")

BAD = {
    "one NaN": (replaced(A, NAN), "has 1 NaN and 0 infinite of 8 values"),
    "two Inf": (replaced(A, INF), "has 0 NaN and 2 infinite of 8 values"),
    "transposed": (replaced(A, GOOD.t().contiguous()), r"has shape \(4, 2\), the broadcast has \(2, 4\)"),
    "broadcastable": (replaced(A, GOOD[:1]), r"has shape \(1, 4\)"),
    "scalar": (replaced(A, torch.tensor(1.0)), r"has shape \(\)"),
    "other dtype": (replaced(A, GOOD.double()), "is 'float64', expected float32"),
    "half precision": (replaced(A, GOOD.bfloat16()), "is 'bfloat16', expected float32"),
    "missing key": (without(A), "has no 'base_model.model.q.lora_A.weight'"),
    "extra key": (replaced("../x\x00", GOOD), r"has '../x\\x00' too many"),
    "look-alike key": (replaced("he\u0430d.weight", GOOD), r"has 'he\\u0430d.weight' too many"),
    "empty record": (record("arrays", ArrayRecord()), "3 tensors are expected"),
    "no record": (record("arrays", None), "has 0 array records"),
    "pickled": (raw(data=b"\x80\x04\x95aaaaaaaaaaaaaa."), "does not begin with the header"),
    "truncated": (raw(data=to_record({A: GOOD})[A].data[:-4]), "carries 28 bytes of values, expected 32"),
    "empty bytes": (raw(data=b""), "does not begin with the header"),
    "garbage": (raw(data=b"x" * 5000), "does not begin with the header"),
    "metadata against bytes": (
        raw(data=to_record({A: GOOD.t().contiguous()})[A].data),
        "claims '<f4' of shape",
    ),
    "no weight": (no_examples, "has no metric 'num-examples'"),
    "weight 0": (examples(0), "is 0, expected a number above 0"),
    "weight -5": (examples(-5), "is -5"),
    "weight -19.999": (examples(-19.999), "is -19.999"),
    "weight NaN": (examples(math.nan), "is nan"),
    "weight Inf": (examples(math.inf), "is inf"),
    "weight 2^62": (examples(2**62), r"is 4.61169e\+18, expected"),
    "weight list": (examples([1, 2]), "is a list, expected one number"),
    "weight text": (record("metrics", ConfigRecord({"num-examples": "3"})), "has 0 metric records"),
    "past round": (sender(round=0), "is of round 0, this is round 1"),
    "other silo's name": (sender(silo="a"), "calls itself 'a', but the message went to 'b'"),
    "odd sender": (record("fedmerge", ConfigRecord({"round": "1"})), "'round' is str, expected int"),
    "failure": (lambda _: failure_content(Sender("b", 1, failure="ValueError")), "failed with 'ValueError'"),
    "failure with a sentence": (
        lambda _: failure_content(Sender("b", 1, failure="ConfigError", sentence="no rows")),
        "^no rows$",
    ),
    "a long and ugly sentence": (
        lambda _: failure_content(Sender("b", 1, failure="X", sentence="one\n two " + "x" * 9000)),
        "^one two x{1992}$",
    ),
    "an unprintable sentence": (
        lambda _: failure_content(Sender("b", 1, failure="X", sentence="\x1b[2J")),
        "^failed with 'X'$",
    ),
    "a body above the cap": (swollen, r"it has 2097\d+ bytes of tensors, at most 1051728 are taken"),
    "33 records": (more(**{f"r{n}": ConfigRecord() for n in range(30)}), "it has 33 records, at most 32"),
    "a million metrics": (
        more(many=ConfigRecord({str(n): n for n in range(100_001)})),
        "metrics and keys, at most 100000",
    ),
    "a key of 10 kB": (
        more(odd=ConfigRecord({"k" * 10_000: 1})),
        r"the name 'k{80}\.\.\.' has 10000 characters",
    ),
    "a tensor's name of 10 kB": (replaced("k" * 10_000, torch.zeros(1)), "has 10000 characters"),
    "a code": (
        lambda _: failure_content(Sender("b", 1, failure="PolicyError", code="policy/steps")),
        r"^failed with 'PolicyError' \(policy/steps\)$",
    ),
    "an odd code": (
        lambda _: RecordDict({"fedmerge": ConfigRecord({"failure": "X", "code": "a b"})}),
        "'code' is 'a b', expected a short code",
    ),
    "empty": (lambda _: RecordDict(), "has 0 metric records"),
    "Flower error": (
        lambda _: Error(2, "boom at /x"),
        "Flower error 2, the ClientApp raised an exception: boom",
    ),
    "crash": (lambda _: Error(8), "Flower error 8, the ClientApp crashed"),
    "unknown error": (lambda _: Error(77), "Flower error 77, unknown error"),
}


@pytest.mark.parametrize("case", sorted(BAD))
def test_a_refused_reply_leaves_no_trace(case, without_b, caplog):
    change, reason = BAD[case]
    strategy, result = run(node_of({"b": change}), rule="ties(density=0.5)")
    assert bits(result.arrays) == without_b
    [refusal] = strategy.refused
    assert (refusal.silo, refusal.round) == ("b", 1)
    assert re.search(reason, refusal.reason), refusal.reason
    assert f"round 1: b is refused: {refusal.reason}" in caplog.text
    assert strategy.rounds[0].missing == []


CODES = {
    "one NaN": "reply/values",
    "transposed": "reply/tensors",
    "extra key": "reply/tensors",
    "truncated": "reply/tensors",
    "no record": "reply/records",
    "odd sender": "reply/records",
    "weight -5": "reply/weight",
    "past round": "reply/stale",
    "other silo's name": "reply/silo",
    "a body above the cap": "reply/too-large",
    "failure": "silo/failed",
    "a code": "policy/steps",
    "crash": "flower/8",
}


@pytest.mark.parametrize("case", sorted(CODES))
def test_refusals_are_counted_by_the_kind_of_reason(case):
    strategy, _ = run(node_of({"b": BAD[case][0]}))
    assert strategy.rounds[0].to_dict()["refusals"] == {CODES[case]: 1}


def test_a_missing_silo_is_named():
    strategy, _ = run(node_of({"b": lambda _: None}))
    assert strategy.rounds[0].missing == ["b"]
    assert strategy.rounds[0].refused == []


def test_another_base_is_refused():
    node = node_of({"b": sender(fingerprint="e" * 64), "c": sender(silo="c")})
    strategy, _ = run(node, fingerprint="f" * 64, quorum=0.3)
    assert [(refusal.silo, refusal.reason[:21]) for refusal in strategy.refused] == [
        ("b", "its base is another: "),
        ("c", "its base is another: "),
    ]
    assert "fingerprint 'eeeeeeeeeeeeeeee', expected 'ffffffffffffffff'" in strategy.refused[0].reason


def test_a_deployment_never_repeats_flowers_error_text():
    node = node_of({"b": lambda _: Error(2, "patient_0815.txt")})
    strategy, _ = run(node, roster=roster_of(*ABC, shared=False), nodes=(11, 12, 13))
    assert strategy.refused[0].reason == "Flower error 2, the ClientApp raised an exception"


class Twice(FakeGrid):
    """Delivers silo a's reply twice, and one that answers nothing."""

    def send_and_receive(self, messages, *, timeout=None):
        if not messages:
            return []
        again = self.node(messages[0])
        replies = list(super().send_and_receive(messages, timeout=timeout))
        stray = Message(self.node(messages[1]), reply_to=messages[1])
        stray.metadata.__dict__["_reply_to_message_id"] = "of another run"
        return [*replies, Message(again, reply_to=messages[0]), stray]


def test_duplicates_and_strays_change_nothing():
    strategy = MergeStrategy(roster=roster_of(*ABC))
    result = strategy.start(Twice(node_of()), initial(), num_rounds=1)
    assert bits(result.arrays) == bits(run(node_of())[1].arrays)
    assert sorted(refusal.reason for refusal in strategy.refused) == [
        "a second reply to the same message",
        "it answers no message of round 1",
    ]


def test_whatever_breaks_the_guard_is_a_refusal(monkeypatch, caplog):
    from fedmerge.server import guard

    def broken(value):
        raise ZeroDivisionError if value == EXAMPLES["b"] else KeyError

    check = guard.check_examples
    monkeypatch.setattr(guard, "check_examples", lambda value: broken(value) if value == 30 else check(value))
    strategy, result = run(node_of(), rule="ties(density=0.5)")
    assert strategy.refused[0].reason == "it can't be read (ZeroDivisionError)"
    assert "broke the guard" in caplog.text
    assert bits(result.arrays) == bits(
        run(node_of({"b": lambda _: None}), rule="ties(density=0.5)")[1].arrays
    )


def test_replies_are_emptied_as_they_come():
    grid, kept = FakeGrid(node_of()), []
    grid.order = lambda replies: kept.extend(replies) or replies
    MergeStrategy(roster=roster_of(*ABC)).start(grid, initial(), num_rounds=1)
    assert [len(reply.content) for reply in kept] == [0, 0, 0]
