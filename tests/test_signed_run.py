"""A whole run in this process between a server that signs and silos that sign: ServerApp and ClientApps."""

from __future__ import annotations

import hashlib
import json

import pytest
from flwr.app import Context, Error, Message, RecordDict

from fedmerge import client_app, server_app
from fedmerge.engine.executors import InProcess
from fedmerge.engine.grid import LocalGrid
from fedmerge.engine.identity import server_identity
from fedmerge.errors import RoundFailed
from fedmerge.wire.protocol import METRICS
from fedmerge.wire.signatures import load_key, new_key, public_text

FEDERATION = "heart-study"
SILOS = ("hospital-a", "hospital-b", "hospital-c")


def private(path):
    path.touch(mode=0o600)
    path.write_bytes(new_key())
    return public_text(load_key(path))


@pytest.fixture
def parties(tmp_path, tiny_rows, monkeypatch):
    """The files of a server and of three silos; gives the silos' node-configs."""
    (tmp_path / "server").mkdir()
    server = private(tmp_path / "server" / "signing.key")
    rows = tiny_rows.read_text().splitlines(keepends=True)
    roster, nodes = "", {}
    for number, silo in enumerate(SILOS):
        folder = tmp_path / silo
        folder.mkdir()
        roster += f'[silos.{silo}]\nkey = "{private(folder / "signing.key")}"\n'
        (folder / "rows.jsonl").write_text("".join(rows[30 * number : 30 * number + 30]))
        (folder / "site.toml").write_text(
            f'silo = "{silo}"\nfederation = "{FEDERATION}"\ndata = "{folder / "rows.jsonl"}"\n'
            f'signing-key = "signing.key"\nserver-key = "{server}"\n'
        )
        nodes[11 + number] = {
            "silo": silo,
            "data": str(folder / "rows.jsonl"),
            "site": str(folder / "site.toml"),
        }
    (tmp_path / "server" / "roster.toml").write_text(roster)
    (tmp_path / "server" / "server.toml").write_text(
        f'federation = "{FEDERATION}"\nruns = "{tmp_path}"\n'
        'signing-key = "signing.key"\nroster = "roster.toml"\n'
    )
    monkeypatch.setenv("FEDMERGE_SERVER", str(tmp_path / "server" / "server.toml"))
    return nodes


def run(flat, nodes, spoil=lambda message, reply: reply):
    """Conduct a run in which each node is one silo, and its replies pass through `spoil`."""

    def serve(message):
        client_app._stations.clear()  # each message of a deployment is a new process
        node = message.metadata.dst_node_id
        return spoil(
            message, client_app.app(message, Context(1, node, dict(nodes[node]), RecordDict(), dict(flat)))
        )

    grid = LocalGrid(InProcess(serve), sorted(nodes), run_id=1)
    with server_identity(run_id=1):
        server_app.app(grid, Context(1, 1, {}, RecordDict(), flat))


def read(folder):
    result = json.loads((folder / "result.json").read_text())
    return result, hashlib.sha256((folder / "adapter" / "adapter_model.safetensors").read_bytes()).hexdigest()


def answering(change):
    """Silo b answers everything but queries as told."""

    def spoil(message, reply):
        spoilt = message.metadata.dst_node_id == 12 and message.metadata.message_type != "query"
        return change(message, reply) if spoilt else reply

    return spoil


def heavier(message, reply):
    reply.content[METRICS]["num-examples"] += 1
    return reply


def crashed(message, reply):
    return Message(Error(8), reply_to=message)


def test_a_run_between_parties_that_sign(tiny_flat, tmp_path, parties):
    """Fault 28 through the whole stack: what b signed is changed on its way, as if b had crashed."""
    flat = tiny_flat(run__rounds=1, run__baselines="", strategy__quorum=0.5, data__silos=",".join(SILOS))
    adapters = []
    for change, code in ((heavier, "reply/forged"), (crashed, "flower/8")):
        run(flat | {"run.output": change.__name__}, parties, answering(change))
        result, adapter = read(tmp_path / change.__name__)
        assert result["silos"] == list(SILOS)
        assert [refusal["silo"] for refusal in result["refused"]] == ["hospital-b"]
        assert result["rounds"][0]["refusals"] == {code: 1}
        assert list(result["candidates"]["merged"]["validation"]) == ["hospital-a", "hospital-c"]
        adapters.append(adapter)
    assert adapters[0] == adapters[1]
    environment = json.loads((tmp_path / "heavier" / "environment.json").read_text())
    assert len(environment["run"]) == 16


def test_a_server_that_signs_hears_nobody_who_does_not(tiny_flat, tmp_path, parties):
    for node in parties.values():
        del node["site"]
    with pytest.raises(
        RoundFailed, match=r"none of 3 nodes told which silos it has; the first said: it is not signed"
    ):
        run(tiny_flat(run__output="one"), parties)


def test_silos_that_sign_answer_no_server_that_does_not(tiny_flat, tmp_path, parties, monkeypatch):
    monkeypatch.delenv("FEDMERGE_SERVER")
    with pytest.raises(
        RoundFailed, match=r"the first said: failed with 'MessageRefused' \(signature/missing\)"
    ):
        run(tiny_flat(), parties)
