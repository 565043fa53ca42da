from __future__ import annotations

import json

import pytest
import torch
from flwr.app import ArrayRecord, ConfigRecord, RecordDict

from fedmerge.errors import WireError
from fedmerge.wire.protocol import (
    FEDMERGE,
    Card,
    Instruction,
    QueryReply,
    Sender,
    failure_content,
    instruction_content,
    read_candidates,
    read_instruction,
    read_sender,
    reply_content,
)
from fedmerge.wire.records import from_record, to_record

RECORD = to_record({"a": torch.ones(2)})


def inflated(content: RecordDict) -> RecordDict:
    """The content as it comes out of a network: every record through its bytes."""
    return RecordDict({key: _inflated(record) for key, record in content.items()})


def _inflated(record):
    if isinstance(record, ArrayRecord):
        return ArrayRecord.inflate(record.deflate(), record.children)
    return type(record).inflate(record.deflate())


@pytest.mark.parametrize(
    "instruction",
    [
        Instruction(),
        Instruction(
            3, "hospital-a", 2**62, "f" * 64, 10.0, 2, 0, "alone", ("validation", "test"), ("a, b", 'c"')
        ),
    ],
)
def test_instructions_come_back_as_they_were(instruction):
    assert read_instruction(inflated(instruction_content(RECORD, instruction))) == instruction


def test_a_users_own_config_travels_along():
    content = instruction_content(RECORD, Instruction(round=2), also={"lr": 0.1, "round": 99})
    assert content["config"]["lr"] == 0.1
    assert content["config"]["round"] == content["config"]["server-round"] == 2


def test_candidates_by_name():
    content = instruction_content(
        RECORD, Instruction(), candidates={"ties() @ factors()": RECORD, "alone/a": RECORD}
    )
    assert list(read_candidates(inflated(content))) == ["received", "ties() @ factors()", "alone/a"]
    with pytest.raises(WireError, match="no array record 'arrays'"):
        read_candidates(RecordDict())
    with pytest.raises(WireError, match="no config record 'config'"):
        read_instruction(RecordDict())


@pytest.mark.parametrize(
    ("key", "value", "reason"),
    [
        ("round", "3", "'round' is str, expected int"),
        ("round", True, "'round' is bool, expected int"),
        ("silo", 3, "'silo' is int, expected str"),
        ("labels", "[1]", "'labels' is not a JSON list of strings"),
        ("labels", "{", "'labels' is not JSON"),
        ("labels", "[" * 100_000, "'labels' is not JSON"),
        ("deadline-seconds", [1.0], "'deadline-seconds' is list, expected float"),
    ],
)
def test_a_wrong_type_is_a_wire_error(key, value, reason):
    with pytest.raises(WireError, match=reason):
        Instruction.from_config(ConfigRecord({key: value}))


def test_a_reply_as_flowers_own_apps_send_it():
    content = reply_content({"a": torch.ones(2)}, 12, metrics={"loss": 0.5})
    assert set(content) == {"arrays", "metrics"}
    assert dict(content["metrics"]) == {"loss": 0.5, "num-examples": 12}
    assert read_sender(content) == Sender()


def test_a_reply_of_a_silo():
    sender = Sender("a", 3, "f", "cuda", True)
    content = inflated(reply_content({"a": torch.ones(2)}, 12, sender=sender, encoding="bf16"))
    assert read_sender(content) == sender
    assert from_record(content["arrays"])["a"].dtype == torch.bfloat16
    assert "arrays" not in reply_content(None, 12)


def test_a_failure():
    sender = Sender("a", 3, failure="ConfigError", sentence="no rows")
    assert read_sender(inflated(failure_content(sender))) == sender


def test_query_replies_come_back_as_they_were():
    reply = QueryReply(
        (Card("a", 3, 1, 2, ("x", "ü")), Card("b", 4)), True, "f", "cpu", False, {"torch": "2.6"}
    )
    assert QueryReply.from_content(inflated(reply.to_content())) == reply


@pytest.mark.parametrize(
    ("record", "reason"),
    [
        ({"silos": "nonsense"}, "'silos' is not JSON"),
        ({"silos": "{}"}, "not a JSON list"),
        ({"silos": '[{"examples": 3}]'}, "an entry has no name"),
        ({"silos": '[{"name": "a", "examples": "3"}]'}, "'examples' is str, expected int"),
        ({"silos": '[{"name": "a", "labels": [3]}]'}, "not a JSON list of strings"),
        ({"failure": "ConfigError", "sentence": "the base is not here"}, "the base is not here"),
        ({"failure": "ConfigError"}, "failed with 'ConfigError'"),
        ({"silos": '[{"name": "a", "labels": [" "]}]'}, "expected 1 to 200 printable"),
        ({"silos": '[{"name": "a", "labels": ["\\ud800"]}]'}, "expected 1 to 200 printable"),
        ({"silos": json.dumps([{"name": "a", "labels": ["x" * 201]}])}, "has 201 characters"),
        ({"silos": json.dumps([{"name": "a", "labels": [str(i) for i in range(10_001)]}])}, "10001 labels"),
        ({"versions": "[]"}, "'versions' is no JSON table"),
        ({"versions": '{"torch": "\\ud800"}'}, r"'versions' holds '\\ud800'"),
        ({"versions": json.dumps({"torch": "2" * 101})}, "at most 100 printable"),
        ({"silos": '[{"name": "a\\nb"}]'}, r"the silo name 'a\\nb' has 3 characters or an unprintable one"),
    ],
)
def test_bad_query_replies_are_wire_errors(record, reason):
    with pytest.raises(WireError, match=reason):
        QueryReply.from_content(RecordDict({FEDMERGE: ConfigRecord(record)}))


def test_a_query_reply_without_its_record():
    with pytest.raises(WireError, match="no config record 'fedmerge'"):
        QueryReply.from_content(RecordDict())
