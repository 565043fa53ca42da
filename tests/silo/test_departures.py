from __future__ import annotations

import errno
import hashlib
import json
import math
import os
import stat
from pathlib import Path

import pytest
import torch
from flwr.app import ConfigRecord, Message, MetricRecord, RecordDict

from fedmerge.engine.identity import server_identity, stamp
from fedmerge.errors import ConfigError, PolicyError
from fedmerge.silo.departures import Departure, described, write
from fedmerge.wire.protocol import Instruction, Sender, reply_content
from fedmerge.wire.records import to_record


@pytest.fixture
def asked() -> Message:
    content = RecordDict({"config": Instruction(round=3, run="a1b2").to_config()})
    with server_identity(run_id=7):
        message = Message(content, dst_node_id=2, message_type="train")
    stamp(message, "m1")
    return message


@pytest.fixture
def content() -> RecordDict:
    delta = {"a.lora_A.weight": torch.ones(2, 3), "a.lora_B.weight": torch.zeros(3, 2, dtype=torch.bfloat16)}
    return reply_content(delta, 40, metrics={"train_loss": 0.5}, sender=Sender("hospital-a", 3, "f" * 64))


def lines(log: Path) -> list[dict]:
    return [json.loads(line) for line in log.read_text(encoding="utf-8").splitlines()]


def test_a_line_says_all_that_left(asked: Message, content: RecordDict, tmp_path: Path) -> None:
    log = tmp_path / "left.jsonl"
    write(log, Departure("hospital-a", "heart-study", asked, content))
    (line,) = lines(log)
    assert (line["silo"], line["to"]) == ("hospital-a", "heart-study")
    place = {"kind": "train", "run": "a1b2", "round": 3, "flower-run": 7, "message": "m1", "outcome": "sent"}
    assert place.items() <= line.items()
    assert line["time"].endswith("+00:00")
    records = line["records"]
    assert records["metrics"]["values"] == {"train_loss": 0.5, "num-examples": 40}
    assert records["fedmerge"]["values"]["fingerprint"] == "f" * 64
    arrays = content["arrays"]
    assert records["arrays"]["tensors"] == {
        "a.lora_A.weight": ["float32", [2, 3], len(arrays["a.lora_A.weight"].data)],
        "a.lora_B.weight": ["bfloat16", [3, 2], 12],
    }
    assert line["bytes"] == sum(record["bytes"] for record in records.values())
    assert all(len(record["sha256"]) == 64 for record in records.values())


def test_a_hash_is_of_the_values(content: RecordDict) -> None:
    first = described(content["arrays"])["sha256"]
    assert described(to_record({"a": torch.ones(2)}))["sha256"] != first
    assert (
        described(to_record({"a": torch.ones(2)}))["sha256"]
        != described(to_record({"a": torch.ones(2) * 2}))["sha256"]
    )
    values = described(MetricRecord({"x": 1.5}))
    assert values["sha256"] == hashlib.sha256(b'{"x": 1.5}').hexdigest()


def test_values_that_json_has_no_word_for() -> None:
    values = described(MetricRecord({"x": math.nan, "y": [1.0, math.inf]}))["values"]
    assert values == {"x": "nan", "y": [1.0, "inf"]}
    assert described(ConfigRecord({"b": b"abc"}))["values"]["b"].startswith("3 bytes, sha256 ba7816bf")


def test_a_refusal_stands_there_in_full(asked: Message, tmp_path: Path) -> None:
    log = tmp_path / "left.jsonl"
    content = RecordDict({"fedmerge": ConfigRecord({"failure": "PolicyError", "code": "late"})})
    write(log, Departure("a", "", asked, content, PolicyError("too old, of patient 7", code="late")))
    write(log, Departure("a", "", asked, content, ConfigError("/srv/patients.csv: line 3")))
    write(log, Departure("a", "", asked, content, ValueError("row 4")))
    told = [(line["outcome"], line["error"], line["code"], line["sentence"]) for line in lines(log)]
    assert told == [
        ("refused", "PolicyError", "late", "too old, of patient 7"),
        ("failed", "ConfigError", "", "/srv/patients.csv: line 3"),
        ("failed", "ValueError", "", "row 4"),
    ]


def test_the_log_is_for_its_owner_and_group_and_can_be_rotated(
    asked: Message, content: RecordDict, tmp_path: Path
) -> None:
    log = tmp_path / "left.jsonl"
    before = os.umask(0o077)
    try:
        write(log, Departure("a", "", asked, content))
    finally:
        os.umask(before)
    assert stat.S_IMODE(log.stat().st_mode) == 0o640
    log.rename(tmp_path / "left.jsonl.1")
    write(log, Departure("a", "", asked, content))
    write(log, Departure("a", "", asked, content))
    assert [len(lines(path)) for path in (tmp_path / "left.jsonl.1", log)] == [1, 2]


@pytest.mark.parametrize("failing", ["write", "fsync"])
def test_a_disk_that_is_full_leaves_no_half_of_a_line(
    failing: str, asked: Message, content: RecordDict, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    log = tmp_path / "left.jsonl"
    write(log, Departure("a", "", asked, content))
    before = log.read_bytes()
    real = os.write

    def half(handle: int, line: bytes) -> int:
        return real(handle, line[:20])

    def full(_handle: int) -> None:
        raise OSError(errno.ENOSPC, "No space left on device")

    monkeypatch.setattr(os, failing, half if failing == "write" else full)
    with pytest.raises(PolicyError, match=r"can't be written \(.*\): nothing leaves") as caught:
        write(log, Departure("a", "", asked, content))
    assert caught.value.code == "site/log"
    assert log.read_bytes() == before


def test_a_log_that_is_no_file(asked: Message, content: RecordDict, tmp_path: Path) -> None:
    with pytest.raises(PolicyError, match=r"can't be written \(Is a directory\)"):
        write(tmp_path, Departure("a", "", asked, content))
