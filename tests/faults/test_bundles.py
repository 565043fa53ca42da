"""Fault 45: an unsigned or changed bundle. No server gets code of its own run at a site."""

from __future__ import annotations

import json
from pathlib import Path

import pytest

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

client, server = ClientApp(), ServerApp()


@client.train()
def train(message, context):
    Path({canary!r}).touch()
    return Message(RecordDict(), reply_to=message)


@server.main()
def main(grid, context):
    while not (nodes := list(grid.get_node_ids())):
        time.sleep(0.3)
    replies = grid.send_and_receive([Message(RecordDict(), node, "train") for node in nodes])
    errors = [(reply.error.code, reply.error.reason) if reply.has_error() else (0, "") for reply in replies]
    Path({answer!r}).write_text(json.dumps(errors))
"""


def unguarded(script: Path) -> None:
    """Make a party start apps as Flower's guides do."""
    text = script.read_text(encoding="utf-8")
    assert GUARD in text
    script.write_text(text.replace(GUARD, ""), encoding="utf-8")


def run(live: Live, bundle: Path) -> None:
    """Submit a bundle and wait for its end."""
    number = str(flwr(live.server, "run", str(bundle), live.made.name)["run-id"])

    def ended() -> bool:
        status = flwr(live.server, "list", live.made.name, "--run-id", number)["runs"][0]["status"]
        return str(status).startswith("finished")

    live.wait_for(ended, "the run ends", 200.0)


@pytest.mark.slow
@pytest.mark.fault(45)
def test_a_servers_own_code_is_not_run_at_a_site(tmp_path: Path) -> None:
    canary, answer, bundle = tmp_path / "canary", tmp_path / "answer.json", tmp_path / "bundle"
    bundle.mkdir()
    (bundle / "LICENSE").write_text("none")
    (bundle / "pyproject.toml").write_text(PYPROJECT)
    (bundle / "app.py").write_text(APP.format(canary=str(canary), answer=str(answer)))
    with federation(tmp_path / "federation", ("hospital-a",), start=False) as live:
        live.start_server()
        live.register()
        live.start_silo("hospital-a")
        run(live, bundle)
        assert not answer.exists()  # the server's own SuperExec refuses it, too
        assert "refused: the bundle brings 'app.py'" in live.log("server-superexec")

        live.kill("server-superexec", family=True)
        unguarded(live.command("server-superexec"))  # a server that does as it likes
        live.start("server-superexec")
        run(live, bundle)
        ((code, reason),) = json.loads(answer.read_text())
        assert code != 0
        assert "app.py" not in reason  # the sentence stays at the site
        assert "refused: the bundle brings 'app.py'" in live.log("superexec/hospital-a")
        assert not canary.exists()

        live.kill("superexec/hospital-a", family=True)
        unguarded(live.command("superexec/hospital-a"))  # as Flower's guides have it
        live.start("superexec/hospital-a")
        run(live, bundle)
        assert json.loads(answer.read_text()) == [[0, ""]]
        assert canary.exists()
