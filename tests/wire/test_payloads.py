from __future__ import annotations

import struct

import pytest
import torch
from flwr.app import Array, ArrayRecord, ConfigRecord, MetricRecord, RecordDict
from hypothesis import given, settings
from hypothesis import strategies as st

from fedmerge.errors import ConfigError, WireError
from fedmerge.wire.payloads import SIGNATURE, message_payload, put_signature, reply_payload
from fedmerge.wire.protocol import Instruction, Sender, instruction_content, reply_content
from fedmerge.wire.records import to_record
from fedmerge.wire.signatures import load_key, load_public, new_key, public_text, sign, verify

FEDERATION = "heart-study"
TENSORS = {"lora_A": torch.arange(6.0).reshape(2, 3), "head": torch.ones(2, dtype=torch.bfloat16)}


@pytest.fixture(scope="module")
def key(tmp_path_factory):
    path = tmp_path_factory.mktemp("keys") / "signing.key"
    path.touch(mode=0o600)
    path.write_bytes(new_key())
    return load_key(path)


def reply() -> RecordDict:
    sender = Sender("hospital-a", 3, "f" * 64, "cpu", True, run="0" * 16, nonce="9" * 32)
    metrics = {"received/validation/loss": 0.25, "outcomes": [1.0, 2.0]}
    return reply_content(
        TENSORS, 40, metrics=metrics, sender=sender, statistics={"fisher": {"lora_A": torch.ones(2, 3)}}
    )


def message() -> RecordDict:
    instruction = Instruction(3, "hospital-a", 7, "f" * 64, run="0" * 16, nonce="9" * 32, asked=3, issued=5)
    content = instruction_content(to_record(TENSORS), instruction, candidates={"base": to_record(TENSORS)})
    instruction.seal(content["config"])
    return content


def places(content: RecordDict) -> list[tuple[str, ...]]:
    """Every place in a content where a bit can flip."""
    found: list[tuple[str, ...]] = [(name,) for name in content]
    for name, record in content.items():
        parts = (
            ("name", "dtype", "shape", "stype", "data")
            if isinstance(record, ArrayRecord)
            else ("name", "value")
        )
        found += [(name, key, part) for key in record for part in parts]
    return found


def flipped(content: RecordDict, place: tuple[str, ...], bit: int) -> RecordDict:
    """The content with one bit at `place` flipped; `bit` counts from the start of what stands there."""
    changed = RecordDict()
    for name, record in content.items():
        if place[0] != name:
            changed[name] = record
        elif len(place) == 1:
            changed[_text(name, bit)] = record
        else:
            changed[name] = type(record)()
            for key, value in record.items():
                here = key == place[1]
                new = _text(key, bit) if here and place[2] == "name" else key
                changed[name][new] = _changed(value, place[2], bit) if here else value
    return changed


def _changed(value, part: str, bit: int):
    if part == "name":
        return value
    if not isinstance(value, Array):
        return _value(value, bit)
    fields = {"dtype": value.dtype, "shape": tuple(value.shape), "stype": value.stype, "data": value.data}
    fields[part] = _value(fields[part], bit)
    return Array(**fields)


def _value(value, bit: int):
    match value:
        case bool():
            return not value
        case int():
            return value ^ (1 << bit % 62)
        case float():
            return struct.unpack("<d", _bytes(struct.pack("<d", value), bit))[0]
        case bytes():
            return _bytes(value, bit)
        case str():
            return _text(value, bit)
        case list() | tuple():
            position = bit % len(value)
            return type(value)([*value[:position], _value(value[position], bit), *value[position + 1 :]])


def _bytes(data: bytes, bit: int) -> bytes:
    position = bit // 8 % len(data)
    return data[:position] + bytes([data[position] ^ (1 << bit % 8)]) + data[position + 1 :]


def _text(text: str, bit: int) -> str:
    if not text:
        return "x"
    position = bit // 7 % len(text)
    return text[:position] + chr(ord(text[position]) ^ (1 << bit % 7)) + text[position + 1 :]


def holds(public, payload, content, signature: str) -> bool:
    try:
        return verify(public, payload(content, "train", FEDERATION), signature)
    except WireError:  # the reader refuses it for what it is
        return False


@pytest.mark.parametrize(
    ("make", "payload", "home"), [(reply, reply_payload, "fedmerge"), (message, message_payload, "config")]
)
@settings(deadline=None, max_examples=300)
@given(data=st.data())
def test_no_bit_can_flip(key, make, payload, home, data):
    """Fault 28: a single bit anywhere in what is signed, be it a field, a name or a byte of an array."""
    public, content = load_public(public_text(key)), make()
    signature = sign(key, payload(content, "train", FEDERATION))
    put_signature(content, home, signature)
    assert holds(public, payload, content, signature)
    place = data.draw(st.sampled_from([where for where in places(content) if where[1:2] != (SIGNATURE,)]))
    other = flipped(content, place, data.draw(st.integers(0, 2**20)))
    assert not holds(public, payload, other, signature), place


@given(st.integers(0, 8 * 88 - 1))
def test_no_bit_of_a_signature_can_flip(key, bit):
    payload = {"a": 1}
    signature = sign(key, payload)
    other = _bytes(signature.encode(), bit).decode("latin-1")
    assert not verify(load_public(public_text(key)), payload, other)


@pytest.mark.parametrize(("kind", "federation"), [("evaluate", FEDERATION), ("train", "other-study")])
def test_a_signature_is_for_one_kind_of_message_and_one_federation(key, kind, federation):
    public, content = load_public(public_text(key)), reply()
    for payload in (reply_payload, message_payload):
        signature = sign(key, payload(content, "train", FEDERATION))
        assert verify(public, payload(content, "train", FEDERATION), signature)
        assert not verify(public, payload(content, kind, federation), signature)


def test_a_signature_over_a_message_proves_no_reply(key):
    public, content = load_public(public_text(key)), reply()
    signature = sign(key, message_payload(content, "train", FEDERATION))
    assert not verify(public, reply_payload(content, "train", FEDERATION), signature)


def test_records_can_neither_be_added_nor_left_out(key):
    public, content = load_public(public_text(key)), reply()
    signature = sign(key, reply_payload(content, "train", FEDERATION))
    content["more"] = MetricRecord()
    assert not verify(public, reply_payload(content, "train", FEDERATION), signature)
    del content["more"], content["statistics/fisher"]
    assert not verify(public, reply_payload(content, "train", FEDERATION), signature)


def test_a_signature_needs_its_place():
    with pytest.raises(WireError, match="no config record 'fedmerge' to put a signature into"):
        put_signature(RecordDict({"fedmerge": MetricRecord()}), "fedmerge", "x")


def test_old_messages_say_nothing_of_signatures():
    """An older fedmerge on the other side reads what it always read."""
    new = {"nonce", "issued", "asked", "signature", "federation", "lifetime-seconds"}
    assert not new & set(Instruction(3, "a").to_config())
    assert not {"run", "nonce", "signature", "code"} & set(Sender("a", 3).to_config())
    assert Instruction.from_config(Instruction(3, "a").to_config()) == Instruction(3, "a")


def test_what_is_signed_comes_back_as_it_was():
    sender = Sender("a", 3, code="policy/steps", failure="PolicyError", run="r", nonce="n", signature="s")
    assert Sender.from_config(sender.to_config()) == sender
    assert sender.complaint == "failed with 'PolicyError' (policy/steps)"
    instruction = Instruction(3, "a", federation="f", nonce="n", issued=7, lifetime_seconds=60.0, asked=2)
    record = instruction.to_config()
    instruction.seal(record)
    assert Instruction.from_config(record) == instruction


@pytest.mark.parametrize("code", ["Policy", "a b", "x" * 61, "/a", "a\n"])
def test_a_code_is_short_and_plain(code):
    with pytest.raises(WireError, match="message key 'code' is"):
        Sender.from_config(ConfigRecord({"code": code}))


@pytest.mark.parametrize("mode", [0o640, 0o604, 0o620])
def test_a_key_that_others_can_reach_is_refused(tmp_path, mode):
    path = tmp_path / "signing.key"
    path.write_bytes(new_key())
    path.chmod(mode)
    with pytest.raises(ConfigError, match=rf"has mode {mode:04o}.*chmod 600"):
        load_key(path)
