"""Fault 45: an unsigned or changed bundle. No server gets code of its own run at a site."""

from __future__ import annotations

import json
import re
from pathlib import Path

import pytest
from cryptography.hazmat.primitives import serialization
from cryptography.hazmat.primitives.asymmetric.ed25519 import Ed25519PrivateKey
from flwr.common.constant import ErrorCode

from fedmerge.deployment.submission import flwr
from tests.deployment.live import Live, federation

GUARD = "PATH=$HERE/apps:$PATH"

PYPROJECT = """
[project]
name = "fedmerge"
version = "0.1.0"
dependencies = ["flwr>=1.41,<1.42"]
license = { file = "LICENSE" }

[tool.flwr.app]
publisher = "fedmerge"
fab-format-version = 1
flwr-version-target = "1.41.0"
fab-include = ["app.py", "/LICENSE"]

[tool.flwr.app.components]
serverapp = "app:server"
clientapp = "app:client"

[tool.flwr.app.config]
"""

APP = """
import json, time
from pathlib import Path

from flwr.app import Message, RecordDict
from flwr.clientapp import ClientApp
from flwr.serverapp import ServerApp

client = ClientApp()
server = ServerApp()


@client.train()
def train(message, context):
    Path({canary!r} + str(context.node_id)).touch()
    return Message(RecordDict(), reply_to=message)


@server.main()
def main(grid, context):
    while len(nodes := list(grid.get_node_ids())) < 2:
        time.sleep(0.3)
    replies = grid.send_and_receive([Message(RecordDict(), node, "train") for node in nodes])
    errors = [(reply.error.code, reply.error.reason) if reply.has_error() else (0, "") for reply in replies]
    nodes = [str(reply.metadata.src_node_id) for reply in replies]
    Path({answer!r}).write_text(json.dumps(dict(zip(nodes, errors))))
"""


def unguarded(script: Path) -> None:
    """Make a party start apps as Flower's guides do."""
    text = script.read_text(encoding="utf-8")
    assert GUARD in text
    cold = re.sub(
        r'"\S*python3" -P -m fedmerge.deployment.warm_superexec \S+ \\\n', "", text.replace(GUARD, "")
    )
    script.write_text(cold, encoding="utf-8")


def trusting(script: Path, folder: Path) -> None:
    """Make a SuperNode run only bundles that a certain key signed, by Flower's own means."""
    key = Ed25519PrivateKey.generate().public_key()
    text = key.public_bytes(serialization.Encoding.OpenSSH, serialization.PublicFormat.OpenSSH).decode()
    (folder / "trusted.yaml").write_text(f"operator: {text}\n", encoding="utf-8")
    started = script.read_text(encoding="utf-8")
    given = started.replace(
        "--isolation process", f"--isolation process --trusted-entities {folder}/trusted.yaml"
    )
    assert given != started
    script.write_text(given, encoding="utf-8")


def run(live: Live, bundle: Path) -> str:
    """Submit a bundle and wait for its end; returns Flower's number of the run."""
    number = str(flwr(live.server, "run", str(bundle), live.made.name)["run-id"])

    def ended() -> bool:
        status = flwr(live.server, "list", live.made.name, "--run-id", number)["runs"][0]["status"]
        return str(status).startswith("finished")

    live.wait_for(ended, "the run ends", 300.0)
    return number


@pytest.mark.slow
@pytest.mark.fault(45)
@pytest.mark.timeout(1200)
def test_a_servers_own_code_is_not_run_at_a_site(tmp_path: Path) -> None:
    answer, bundle = tmp_path / "answer.json", tmp_path / "bundle"
    bundle.mkdir()
    (bundle / "LICENSE").write_text("none")
    (bundle / "pyproject.toml").write_text(PYPROJECT)
    (bundle / "app.py").write_text(APP.format(canary=f"{tmp_path}/ran-at-", answer=str(answer)))
    with federation(tmp_path / "federation", ("hospital-a", "hospital-b"), start=False) as live:
        trusting(live.command("supernode/hospital-b"), tmp_path)  # beside ours, Flower's own way
        unguarded(live.command("superexec/hospital-b"))
        live.start_server()
        live.register()
        for silo in live.silos:
            live.start_silo(silo)
        nodes = {silo: (live.server / "nodes" / f"{silo}.id").read_text().strip() for silo in live.silos}

        number = run(live, bundle)
        assert not answer.exists()  # the server's own SuperExec refuses it, too
        assert "the bundle brings 'app.py'" in live.call("logs", number)

        live.kill("server-superexec", family=True)
        unguarded(live.command("server-superexec"))  # a server that does as it likes
        live.start("server-superexec")
        run(live, bundle)
        told = {silo: json.loads(answer.read_text())[node] for silo, node in nodes.items()}
        assert told["hospital-a"][0] == ErrorCode.LOAD_CLIENT_APP_EXCEPTION
        assert "app.py" not in told["hospital-a"][1]  # the sentence stays at the site
        assert "the bundle holds 'app.py'" in live.log("superexec/hospital-a")
        assert told["hospital-b"][0] == ErrorCode.INVALID_FAB  # no bundle that the Hub did not sign is run
        assert list(tmp_path.glob("ran-at-*")) == []

        live.kill("superexec/hospital-a", family=True)
        unguarded(live.command("superexec/hospital-a"))  # as Flower's guides have it
        live.start("superexec/hospital-a")
        run(live, bundle)
        assert json.loads(answer.read_text())[nodes["hospital-a"]] == [0, ""]
        assert [path.name for path in tmp_path.glob("ran-at-*")] == [f"ran-at-{nodes['hospital-a']}"]
