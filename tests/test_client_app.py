import json
import time

import pytest
import torch
from cryptography.hazmat.primitives.asymmetric.ed25519 import Ed25519PrivateKey
from flwr.app import Context, Message, RecordDict

from fedmerge import client_app
from fedmerge.config import read_config
from fedmerge.engine.identity import server_identity, stamp
from fedmerge.silo.lora import initial_adapter
from fedmerge.wire.payloads import message_payload, put_signature, reply_payload
from fedmerge.wire.protocol import (
    CONFIG,
    FEDMERGE,
    METRICS,
    Instruction,
    QueryReply,
    instruction_content,
    read_sender,
)
from fedmerge.wire.records import from_record, to_record
from fedmerge.wire.signatures import load_key, new_key, public_text, sign, verify


def ask(message_type, content, flat, node_config=None):
    context = Context(1, 2, node_config or {}, RecordDict(), dict(flat))
    with server_identity(run_id=1):
        message = Message(content, dst_node_id=2, message_type=message_type)
    stamp(message, "1")
    reply = client_app.app(message, context)
    assert reply.metadata.reply_to_message_id == "1"
    return reply.content


def order(flat, also=None, **wishes):
    initial = initial_adapter(read_config(flat).silo)
    records = {name: to_record(initial.tensors) for name in also or ()}
    wishes = {"silo": "birds", "round": 1, "steps": 2, "splits": ("validation",)} | wishes
    return instruction_content(to_record(initial.tensors), Instruction(**wishes), candidates=records)


@pytest.fixture
def flat(tiny_flat):
    return tiny_flat()


@pytest.fixture
def own(tiny_rows, tmp_path):
    """The node-config of a deployed silo, with rows of its own."""
    rows = tmp_path / "own.jsonl"
    rows.write_text("".join(tiny_rows.read_text().splitlines(keepends=True)[:30]))
    return {"silo": "hospital-a", "data": str(rows)}


def test_a_query_tells_all_silos_of_a_simulation(flat):
    told = QueryReply.from_content(ask("query", RecordDict(), flat))
    assert told.shared and told.device == "cpu" and len(told.fingerprint) == 64
    assert [card.name for card in told.silos] == ["birds", "rocks", "ships"]
    assert all(card.examples > 0 and card.validation > 0 and card.test > 0 for card in told.silos)
    assert told.versions["torch"] == torch.__version__


def test_a_query_tells_the_one_silo_of_a_deployed_node(flat, own):
    told = QueryReply.from_content(ask("query", RecordDict(), flat, own))
    assert not told.shared
    assert [card.name for card in told.silos] == ["hospital-a"]


def test_training_gives_a_delta_scores_and_who_answers(flat):
    content = ask("train", order(flat), flat)
    delta = from_record(content["arrays"])
    assert delta.keys() == initial_adapter(read_config(flat).silo).tensors.keys()
    assert any(bool(value.any()) for value in delta.values())
    assert content[METRICS]["num-examples"] > 0
    assert content[METRICS]["received/validation/loss"] > 0
    sender = read_sender(content)
    assert (sender.silo, sender.round, sender.device, sender.failure) == ("birds", 1, "cpu", "")


def test_the_same_order_gives_the_same_bits_whatever_came_between(flat):
    first = ask("train", order(flat), flat)["arrays"]
    ask("train", order(flat, silo="rocks"), flat)
    again = ask("train", order(flat), flat)["arrays"]
    assert all(first[name].data == again[name].data for name in first)


def test_deltas_travel_in_the_encoding_of_the_run(tiny_flat):
    flat = tiny_flat(wire__encoding="bf16")
    assert {array.dtype for array in ask("train", order(flat), flat)["arrays"].values()} == {"bfloat16"}


def test_evaluation_scores_every_candidate_on_every_split(flat):
    content = ask("evaluate", order(flat, also=["base"], splits=("validation", "test")), flat)
    assert "arrays" not in content
    metrics = content[METRICS]
    for key in ("received/validation/loss", "received/test/loss", "base/validation/loss", "base/test/loss"):
        assert metrics[key] > 0
    assert metrics["base/test/loss"] == metrics["received/test/loss"]


def test_a_deployed_node_serves_its_own_silo_and_no_other(flat, own):
    assert read_sender(ask("train", order(flat, silo=""), flat, own)).silo == "hospital-a"
    assert read_sender(ask("train", order(flat, silo="hospital-a"), flat, own)).failure == ""
    assert read_sender(ask("train", order(flat, silo="birds"), flat, own)).failure == "ConfigError"


@pytest.mark.parametrize("wishes", [{"silo": "nowhere"}, {"fingerprint": "0" * 64}, {"steps": 0}])
def test_what_can_not_be_done_is_a_failure_reply_with_its_sentence(flat, wishes):
    content = ask("train", order(flat, **wishes), flat)
    sender = read_sender(content)
    assert sender.failure == "ConfigError" and sender.sentence
    assert sender.silo == wishes.get("silo", "birds")
    assert "Traceback" not in json.dumps(dict(content[FEDMERGE]))


def test_a_deployed_node_tells_the_class_of_an_error_and_keeps_its_sentence(flat, own):
    sender = read_sender(ask("query", RecordDict(), flat, own | {"data": "/nowhere/secret.jsonl"}))
    assert (sender.failure, sender.sentence, sender.silo) == ("ConfigError", "", "hospital-a")


def test_a_message_that_is_no_order_is_a_failure_reply(flat):
    assert read_sender(ask("train", RecordDict(), flat)).failure == "WireError"


def test_the_worker_is_kept_for_one_config_and_made_anew_for_another(tiny_flat):
    flat, other = tiny_flat(), tiny_flat(train__batch_size=2)

    def made(config):
        return client_app.station(Context(1, 2, {}, RecordDict(), dict(config)))

    first = made(flat)
    assert made(flat) is first
    assert made(other) is not first
    assert len(client_app._stations) == 1


FEDERATION = "heart-study"


@pytest.fixture
def server_key():
    return Ed25519PrivateKey.generate()


@pytest.fixture
def site(own, tmp_path, server_key):
    """The node-config of a silo that signs, and believes one server."""
    (tmp_path / "signing.key").touch(mode=0o600)
    (tmp_path / "signing.key").write_bytes(new_key())
    (tmp_path / "site.toml").write_text(
        f'silo = "hospital-a"\nfederation = "{FEDERATION}"\nsigning-key = "signing.key"\n'
        f'server-key = "{public_text(server_key)}"\n'
    )
    return own | {"site": str(tmp_path / "site.toml")}


def signed(content, kind, key, *, federation=FEDERATION, age=0):
    """The content as the server signs it."""
    content.setdefault(CONFIG, Instruction().to_config())
    issued = int(time.time()) - age
    instruction = Instruction(federation=federation, nonce="n", issued=issued, lifetime_seconds=60.0)
    instruction.seal(content[CONFIG])
    put_signature(content, CONFIG, sign(key, message_payload(content, kind, federation)))
    return content


def proven(content, kind, tmp_path):
    public = load_key(tmp_path / "signing.key").public_key()
    payload = reply_payload(content, kind, FEDERATION)
    return verify(public, payload, read_sender(content).signature)


def test_a_silo_with_keys_signs_whatever_it_answers(flat, site, server_key, tmp_path):
    wish = order(flat, silo="hospital-a", run="r", also=["base"])
    for kind, content in (("query", RecordDict()), ("train", wish), ("evaluate", wish)):
        reply = ask(kind, signed(content, kind, server_key), flat, site)
        sender = read_sender(reply)
        assert (sender.failure, sender.silo, sender.nonce) == ("", "hospital-a", "n")
        assert proven(reply, kind, tmp_path)
        assert not proven(reply, "other", tmp_path)


@pytest.mark.parametrize(
    "case",
    [
        (lambda content, key: content, "signature/missing"),
        (lambda content, key: signed(content, "evaluate", key), "signature/forged"),
        (lambda content, key: signed(content, "train", Ed25519PrivateKey.generate()), "signature/forged"),
        (lambda content, key: signed(content, "train", key, federation="lungs"), "signature/federation"),
        (lambda content, key: signed(content, "train", key, age=500), "signature/expired"),
        (lambda content, key: signed(content, "train", key, age=-500), "signature/clock"),
    ],
)
def test_a_silo_with_keys_loads_nothing_for_whoever_is_not_its_server(flat, site, server_key, tmp_path, case):
    spoil, code = case
    client_app._stations.clear()
    content = spoil(order(flat, silo="hospital-a"), server_key)
    reply = ask("train", content, flat, site)
    sender = read_sender(reply)
    assert (sender.failure, sender.sentence, sender.code) == ("MessageRefused", "", code)
    assert sender.silo == "hospital-a" and proven(reply, "train", tmp_path)
    assert not client_app._stations


def test_a_site_that_can_not_sign_says_so_unsigned(flat, site, tmp_path):
    (tmp_path / "signing.key").chmod(0o644)
    sender = read_sender(ask("query", RecordDict(), flat, site))
    assert (sender.failure, sender.sentence, sender.signature) == ("ConfigError", "", "")
