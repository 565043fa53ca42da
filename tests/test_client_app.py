import json
import os
import subprocess
import sys
import time

import pytest
import torch
from cryptography.hazmat.primitives.asymmetric.ed25519 import Ed25519PrivateKey
from flwr.app import Context, Message, RecordDict

from fedmerge import client_app
from fedmerge.config import read_config
from fedmerge.engine.identity import server_identity, stamp
from fedmerge.silo.lora import initial_adapter
from fedmerge.wire.digests import digest
from fedmerge.wire.packing import is_packed, pack, unpack
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


def ask(message_type, content, flat, node_config=None, *, age=0, ttl=None):
    """The reply to a message that was made `age` seconds ago."""
    context = Context(1, 2, node_config or {}, RecordDict(), dict(flat))
    with server_identity(run_id=1):
        message = Message(content, dst_node_id=2, message_type=message_type, ttl=ttl)
    message.metadata.created_at = time.time() - age
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


def test_a_packed_order_is_answered_packed(flat):
    plain, packed = (ask("train", form(order(flat)), flat) for form in (lambda content: content, pack))
    assert is_packed(packed) and not is_packed(plain)
    unpack(packed)
    assert digest(packed["arrays"]) == digest(plain["arrays"])
    scores = ask("evaluate", pack(order(flat, also=("again",), epochs=0, steps=0)), flat)
    assert scores.metric_records and not scores.array_records


def test_a_packed_order_that_is_none_is_a_failure_reply(flat):
    content = pack(order(flat))
    content["arrays"]["packed"].data = b"?"
    assert read_sender(ask("train", content, flat)).failure == "WireError"


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


def site_file(folder, own, policy="", **keys):
    """A site.toml of a deployed node, its state and its log in the folder; the node-config that names it."""
    (folder / "state").mkdir(exist_ok=True)
    keys = {"silo": own["silo"], "data": own["data"], "state": str(folder / "state")} | keys
    keys = {"log": str(folder / "left.jsonl")} | keys
    lines = [f"{key} = {json.dumps(value)}" for key, value in keys.items() if value is not None]
    path = folder / "site.toml"
    path.write_text("\n".join([*lines, "[policy]", policy]), encoding="utf-8")
    return {"site": str(path)}


def departures(folder):
    return [json.loads(line) for line in (folder / "left.jsonl").read_text().splitlines()]


@pytest.fixture
def site(own, tmp_path):
    return lambda policy="", **keys: site_file(tmp_path, own, policy, **keys)


def test_a_site_s_log_says_what_left_it(flat, site, tmp_path):
    node = site()
    told = QueryReply.from_content(ask("query", RecordDict(), flat, node))
    content = ask("train", order(flat, silo="", run="a1b2"), flat, node)
    assert read_sender(content).silo == "hospital-a" and told.silos[0].name == "hospital-a"
    asked, trained = departures(tmp_path)
    assert (asked["kind"], trained["kind"], trained["run"], trained["round"]) == ("query", "train", "a1b2", 1)
    assert trained["records"]["arrays"]["tensors"].keys() == content["arrays"].keys()
    assert trained["records"]["metrics"]["values"]["num-examples"] == content[METRICS]["num-examples"]
    assert any((tmp_path / "state" / "fingerprints").iterdir())


def test_the_file_decides_which_rows_are_read(flat, site):
    wishes = {"data.source": "/etc/passwd", "data.server": "/etc/shadow", "data.labels": "/etc/hosts.txt"}
    assert read_sender(ask("train", order(flat, silo=""), flat | wishes, site())).failure == ""


def test_where_the_base_lies_is_the_site_s_own_matter(flat, site, tiny_base):
    elsewhere = flat | {"base.model": "/srv/of/the/server/base"}
    assert read_sender(ask("train", order(flat, silo=""), elsewhere, site())).failure == "ConfigError"
    assert read_sender(ask("train", order(flat, silo=""), elsewhere, site(base=str(tiny_base)))).failure == ""


@pytest.mark.parametrize(
    ("policy", "code"),
    [
        (f'bases = ["{"0" * 64}"]', "policy/bases"),
        ('tasks = ["classification"]', "policy/tasks"),
        ('columns = ["label"]', "policy/columns"),
        ('encodings = ["bf16"]', "policy/encodings"),
        ("max-rounds = 1", "policy/max-rounds"),
    ],
)
def test_a_run_that_the_site_does_not_allow(policy, code, flat, site, tmp_path):
    node = site(policy)
    for kind in ("query", "train", "evaluate"):
        content = RecordDict() if kind == "query" else order(flat, silo="")
        sender = read_sender(ask(kind, content, flat, node))
        told = (sender.silo, sender.failure, sender.code, sender.sentence)
        assert told == ("hospital-a", "PolicyError", code, "")
        line = departures(tmp_path)[-1]
        assert (line["kind"], line["outcome"], line["code"]) == (kind, "refused", code)
        assert code.removeprefix("policy/") in line["sentence"]
    assert not client_app._stations  # nothing was read or loaded


@pytest.mark.parametrize(
    ("policy", "told"),
    [
        ("", True),
        ('columns = ["text", "topic"]', False),
        ('columns = ["text", "topic"]\nlabel-columns = ["topic"]', True),
        ('label-columns = ["text"]', False),
    ],
)
def test_the_site_says_of_which_column_the_server_is_told_the_values(policy, told, flat, site):
    labelled = flat | {"data.label": "topic"}
    card = QueryReply.from_content(ask("query", RecordDict(), labelled, site(policy))).silos[0]
    assert bool(card.labels) is told


def test_a_run_that_takes_the_texts_for_labels_gets_none(flat, site):
    """Each row would be told, whole, before anything is trained."""
    swapped = flat | {"data.label": "text", "data.text": "topic"}
    policy = 'columns = ["text", "topic"]\nlabel-columns = ["topic"]'
    card = QueryReply.from_content(ask("query", RecordDict(), swapped, site(policy))).silos[0]
    assert card.labels is None
    assert read_sender(ask("query", RecordDict(), flat | {"data.label": "text"}, site())).failure


def test_a_deployed_silo_gives_no_scores_of_its_training_rows(flat, site):
    wishes = {"splits": ("train",), "rows": 1, "steps": 0}
    for kind in ("evaluate", "train"):
        assert read_sender(ask(kind, order(flat, silo="", **wishes), flat, site())).failure == "ConfigError"


@pytest.mark.parametrize(
    ("policy", "wishes", "code"),
    [
        ("max-steps = 1", {}, "policy/max-steps"),
        ("max-steps = 1", {"steps": 0, "epochs": 1}, "policy/max-steps"),
        ("min-silos = 3", {}, "policy/min-silos"),
        ("min-silos = 3", {"asked": 2}, "policy/min-silos"),
        ("max-rounds = 2", {"round": 3}, "policy/max-rounds"),
    ],
)
def test_a_message_that_asks_for_too_much(policy, wishes, code, flat, site):
    assert read_sender(ask("train", order(flat, silo="", **wishes), flat, site(policy))).code == code


def test_a_message_within_all_limits(flat, site):
    policy = 'tasks = ["causal-lm"]\ncolumns = ["text"]\nmax-rounds = 2\nmax-steps = 2\nmin-silos = 3'
    assert read_sender(ask("train", order(flat, silo="", asked=3), flat, site(policy))).failure == ""
    assert read_sender(ask("evaluate", order(flat, silo="", asked=3), flat, site(policy))).failure == ""


@pytest.mark.parametrize("kind", ["query", "train", "evaluate"])
def test_a_message_that_waited_too_long_is_answered_at_once(kind, flat, site, tmp_path, monkeypatch):
    monkeypatch.setattr("fedmerge.silo.data.read_splits", None)
    content = RecordDict() if kind == "query" else order(flat, silo="", round=7)
    sender = read_sender(ask(kind, content, flat, site(), age=101, ttl=100))
    assert (sender.failure, sender.code, sender.round) == ("PolicyError", "late", 0 if kind == "query" else 7)
    assert "101 s old" in departures(tmp_path)[0]["sentence"]


def test_time_that_a_message_waited_is_taken_off_its_deadline(flat, site):
    late = order(flat, silo="", deadline_seconds=60.0)
    assert read_sender(ask("train", late, flat, site(), age=61, ttl=100)).code == "late"
    assert read_sender(ask("train", late, flat, site(), age=1, ttl=100)).failure == ""


def test_a_site_file_that_can_not_be_used_is_a_code(flat, own, tmp_path):
    node = site_file(tmp_path, own, data="/nowhere/patients.jsonl")
    for config in (node, {"site": str(tmp_path / "none.toml")}, node | {"silo": "other"}):
        sender = read_sender(ask("train", order(flat, silo=""), flat, config))
        assert (sender.failure, sender.code, sender.sentence) == ("ConfigError", "site/file", "")


def test_nothing_leaves_that_is_not_in_the_log(flat, site, tmp_path):
    node = site()
    (tmp_path / "left.jsonl").mkdir()
    assert read_sender(ask("train", order(flat, silo=""), flat, node)).code == "site/file"
    node = site(log="/dev/full")
    content = ask("train", order(flat, silo=""), flat, node)
    assert read_sender(content).code == "site/log"
    assert sorted(content) == [FEDMERGE, METRICS] and dict(content[METRICS]) == {"num-examples": 0}


SECRET = "/srv/patients/miller-anna.jsonl: line 3"


@pytest.mark.parametrize("kind", [OSError, MemoryError, KeyError, RecursionError, ImportError, BaseException])
def test_fault_31_an_exception_that_names_a_patient_s_file(kind, flat, site, tmp_path, monkeypatch):
    def fail(*_given, **_named):
        raise kind(SECRET)

    monkeypatch.setattr("fedmerge.silo.worker.fit", fail)
    for node in (site(), {"silo": "hospital-a", "data": str(tmp_path / "own.jsonl")}):
        content = ask("train", order(flat, silo=""), flat, node)
        sender = read_sender(content)
        assert (sender.silo, sender.round, sender.failure) == ("hospital-a", 1, kind.__name__)
        assert "miller" not in str({name: dict(record) for name, record in content.items()})
    assert "miller" in departures(tmp_path)[0]["sentence"]


@pytest.mark.parametrize("module", ["fedmerge.station", "fedmerge.silo.site", "fedmerge.config"])
def test_fault_31_a_broken_installation_is_the_class_of_an_error(module, flat, site, monkeypatch):
    monkeypatch.setitem(sys.modules, module, None)  # importing it raises
    sender = read_sender(ask("query", RecordDict(), flat, site()))
    assert (sender.failure, sender.sentence) == ("ModuleNotFoundError", "")


def test_the_client_app_imports_nothing_that_may_fail_before_it_can_answer():
    script = "import sys, fedmerge.client_app; print(*sys.modules)"
    loaded = subprocess.run([sys.executable, "-c", script], capture_output=True, text=True, check=True).stdout
    assert {"torch", "transformers", "fedmerge.silo.site"}.isdisjoint(loaded.split())


def test_a_query_loads_neither_transformers_nor_the_base(flat, site, tmp_path):
    (tmp_path / "flat.json").write_text(json.dumps(flat))
    node = json.dumps(site())
    script = f"""
import json, sys
from flwr.app import Context, Message, RecordDict
from fedmerge import client_app
from fedmerge.engine.identity import server_identity, stamp
with server_identity(run_id=1):
    message = Message(RecordDict(), dst_node_id=2, message_type="query")
stamp(message, "1")
flat = json.load(open({str(tmp_path / "flat.json")!r}))
reply = client_app.app(message, Context(1, 2, json.loads({node!r}), RecordDict(), flat))
assert json.loads(reply.content["fedmerge"]["silos"])[0]["name"] == "hospital-a", reply.content
print(*sys.modules)
"""
    done = subprocess.run([sys.executable, "-c", script], capture_output=True, text=True, check=False)
    assert done.returncode == 0, done.stderr
    assert {"transformers", "peft", "datasets", "huggingface_hub"}.isdisjoint(done.stdout.split())
    assert "INFO silo hospital-a run=1 query answered in" in done.stderr


def test_fault_32_a_process_that_dies_leaves_nothing(flat, site, tmp_path, monkeypatch):
    node = site()
    ask("query", RecordDict(), flat, node)
    monkeypatch.setattr("fedmerge.silo.worker.fit", lambda *_given, **_named: os._exit(9))
    if not (child := os.fork()):
        ask("train", order(flat, silo=""), flat, node)
        os._exit(0)
    assert os.waitstatus_to_exitcode(os.waitpid(child, 0)[1]) == 9
    assert [line["kind"] for line in departures(tmp_path)] == ["query"]
    monkeypatch.undo()
    assert read_sender(ask("train", order(flat, silo=""), flat, node)).failure == ""


@pytest.mark.parametrize("kind", [KeyboardInterrupt, SystemExit])
def test_a_process_that_is_told_to_end_does(kind, flat, site, monkeypatch):
    def end(*_given, **_named):
        raise kind

    monkeypatch.setattr("fedmerge.silo.worker.fit", end)
    with pytest.raises(kind):
        ask("train", order(flat, silo=""), flat, site())


FEDERATION = "heart-study"


@pytest.fixture
def server_key():
    return Ed25519PrivateKey.generate()


@pytest.fixture
def keyed(own, tmp_path, server_key):
    """The node-config of a silo that signs, and believes one server."""
    (tmp_path / "signing.key").touch(mode=0o600)
    (tmp_path / "signing.key").write_bytes(new_key())
    (tmp_path / "site.toml").write_text(
        f'silo = "hospital-a"\ndata = "{own["data"]}"\nfederation = "{FEDERATION}"\n'
        f'signing-key = "signing.key"\n'
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


def test_a_silo_with_keys_signs_whatever_it_answers(flat, keyed, server_key, tmp_path):
    wish = order(flat, silo="hospital-a", run="r", also=["base"])
    for kind, content in (("query", RecordDict()), ("train", wish), ("evaluate", wish)):
        reply = ask(kind, signed(content, kind, server_key), flat, keyed)
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
def test_a_silo_with_keys_loads_nothing_for_whoever_is_not_its_server(
    flat, keyed, server_key, tmp_path, case
):
    spoil, code = case
    client_app._stations.clear()
    content = spoil(order(flat, silo="hospital-a"), server_key)
    reply = ask("train", content, flat, keyed)
    sender = read_sender(reply)
    assert (sender.failure, sender.sentence, sender.code) == ("MessageRefused", "", code)
    assert sender.silo == "hospital-a" and proven(reply, "train", tmp_path)
    assert not client_app._stations


def test_a_site_that_can_not_sign_says_so_unsigned(flat, keyed, tmp_path):
    (tmp_path / "signing.key").chmod(0o644)
    sender = read_sender(ask("query", RecordDict(), flat, keyed))
    assert (sender.failure, sender.sentence, sender.signature) == ("ConfigError", "", "")


def test_a_reply_is_logged_as_it_is_signed_and_a_refusal_for_want_of_a_log_is_signed_too(
    flat, site, server_key, keyed, tmp_path
):
    public = load_key(tmp_path / "signing.key").public_key()
    names = {
        "federation": FEDERATION,
        "signing-key": "signing.key",
        "server-key": public_text(server_key),
    }
    sender = read_sender(ask("train", order(flat, silo="hospital-a", round=2), flat, site(**names)))
    (line,) = departures(tmp_path)
    assert line["records"]["fedmerge"]["values"]["signature"] == sender.signature
    assert (line["to"], line["code"], line["round"]) == (FEDERATION, "signature/missing", 2)
    assert "no signature of the server" in line["sentence"]
    content = ask("query", RecordDict(), flat, site(log="/dev/full", **names))
    assert read_sender(content).code == "site/log"
    assert verify(public, reply_payload(content, "query", FEDERATION), read_sender(content).signature)
