from __future__ import annotations

import base64

import pytest
import torch
from flwr.app import ConfigRecord, Message, RecordDict

from fedmerge.engine.identity import server_identity
from fedmerge.errors import ConfigError, WireError
from fedmerge.silo.credentials import Credentials, MessageRefused
from fedmerge.wire.payloads import message_payload, put_signature, reply_payload
from fedmerge.wire.protocol import Instruction, Sender, instruction_content, read_sender, reply_content
from fedmerge.wire.records import to_record
from fedmerge.wire.signatures import load_key, new_key, public_text, sign, verify

ISSUED = 1_000_000
FEDERATION = "heart-study"


@pytest.fixture(autouse=True)
def identity():
    with server_identity(run_id=1):
        yield


def key_at(path):
    path.touch(mode=0o600)
    path.write_bytes(new_key())
    return load_key(path)


@pytest.fixture
def server(tmp_path):
    return key_at(tmp_path / "server.key")


@pytest.fixture
def credentials(tmp_path, server):
    key_at(tmp_path / "signing.key")
    return Credentials.load(FEDERATION, "hospital-a", tmp_path / "signing.key", public_text(server))


def message_of(key, kind="train", **fields):
    fields = {"federation": FEDERATION, "silo": "hospital-a", "nonce": "n", "issued": ISSUED, **fields}
    instruction = Instruction(round=2, run="r", lifetime_seconds=60.0, **fields)
    content = instruction_content(to_record({"a": torch.ones(2)}), instruction)
    instruction.seal(content["config"])
    put_signature(content, "config", sign(key, message_payload(content, kind, fields["federation"])))
    return Message(content, 2, kind)


def refusal(credentials, message, now=ISSUED):
    with pytest.raises(MessageRefused) as caught:
        credentials.check(message, clock=lambda: now)
    return caught.value


def test_a_message_of_the_server_is_taken(credentials, server):
    instruction = credentials.check(message_of(server), clock=lambda: ISSUED)
    assert (instruction.round, instruction.silo, instruction.run) == (2, "hospital-a", "r")
    assert credentials.check(message_of(server, "query", silo=""), clock=lambda: ISSUED).nonce == "n"


def changed(message):
    message.content["config"]["steps"] = 10**6
    return message


def another_broadcast(message):
    message.content["arrays"]["a"] = to_record({"a": torch.zeros(2)})["a"]
    return message


def unsigned(message):
    del message.content["config"]["signature"]
    return message


@pytest.mark.parametrize(
    ("make", "code", "sentence"),
    [
        (lambda key: changed(message_of(key)), "signature/forged", "forged, or changed on its way"),
        (lambda key: another_broadcast(message_of(key)), "signature/forged", "forged"),
        (lambda key: unsigned(message_of(key)), "signature/missing", "no signature"),
        (lambda key: Message(RecordDict(), 2, "query"), "signature/missing", "no signature"),
        (
            lambda key: Message(RecordDict({"config": to_record({})}), 2, "train"),
            "signature/missing",
            "no signature",
        ),
        (
            lambda key: message_of(key, federation="lung-study"),
            "signature/federation",
            "of federation 'lung-study', this silo is of 'heart-study'",
        ),
        (
            lambda key: message_of(key, silo="hospital-b"),
            "signature/silo",
            "for silo 'hospital-b', this is 'hospital-a'",
        ),
        (lambda key: message_of(key, silo=""), "signature/silo", "for silo ''"),
        (lambda key: message_of(key, "query", silo="hospital-b"), "signature/silo", "for silo 'hospital-b'"),
    ],
)
def test_a_message_that_is_not_the_servers_is_refused(credentials, server, make, code, sentence):
    problem = refusal(credentials, make(server))
    assert problem.code == code and sentence in str(problem)


def test_a_message_of_another_server_is_refused(credentials, tmp_path):
    assert refusal(credentials, message_of(key_at(tmp_path / "other.key"))).code == "signature/forged"


def test_a_message_for_one_thing_can_not_be_used_for_another(credentials, server):
    train = message_of(server)
    assert refusal(credentials, Message(train.content, 2, "evaluate")).code == "signature/forged"


def test_messages_live_as_long_as_they_say_and_clocks_may_differ_by_five_minutes(credentials, server):
    for now in (ISSUED - 300, ISSUED + 60, ISSUED + 360):
        assert credentials.check(message_of(server), clock=lambda now=now: now)
    over = refusal(credentials, message_of(server), ISSUED + 361)
    assert over.code == "signature/expired"
    assert str(over) == (
        "the message was made at 1970-01-12 13:46:40 UTC by the server's clock, "
        "it is 1970-01-12 13:52:41 UTC by this site's: "
        "it was to be answered within 60 s; 300 s between the clocks are tolerated"
    )
    early = refusal(credentials, message_of(server), ISSUED - 301)
    assert early.code == "signature/clock" and "still to come" in str(early)
    assert "s after 1970" in str(refusal(credentials, message_of(server, issued=2**62)))


@pytest.mark.parametrize("answer", [lambda: reply_content({"a": torch.ones(2)}, 3, sender=Sender("x", 9))])
def test_a_reply_is_signed_and_says_what_it_answers(credentials, server, answer):
    message = message_of(server)
    content = credentials.sign(answer(), message)
    sender = read_sender(content)
    assert (sender.silo, sender.round, sender.run, sender.nonce) == ("hospital-a", 2, "r", "n")
    public = credentials.key.public_key()
    assert verify(public, reply_payload(content, "train", FEDERATION), sender.signature)
    content["metrics"]["num-examples"] = 4
    assert not verify(public, reply_payload(content, "train", FEDERATION), sender.signature)


def test_an_answer_to_what_can_not_be_read_is_signed_too(credentials):
    odd = Message(RecordDict({"config": ConfigRecord({"round": "x", "nonce": 3})}), 2, "train")
    for message in (odd, Message(RecordDict(), 2, "train")):
        content = credentials.sign(RecordDict({"fedmerge": Sender(failure="WireError").to_config()}), message)
        sender = read_sender(content)
        assert verify(
            credentials.key.public_key(), reply_payload(content, "train", FEDERATION), sender.signature
        )
    with pytest.raises(WireError, match="no config record 'fedmerge' to sign"):
        credentials.sign(RecordDict(), odd)


def test_another_spelling_of_a_key_is_none(server):
    from fedmerge.wire.signatures import load_public

    text = public_text(server)
    padded = base64.b64decode(text).hex()
    for odd in (padded, text[:-1], text + "\n", text[:-2] + chr(ord(text[-2]) + 1) + "="):
        with pytest.raises(ConfigError, match="is no public key"):
            load_public(odd)
