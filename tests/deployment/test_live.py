"""The whole federation as its folders' own commands start it, over loopback: minutes on two cores."""

from __future__ import annotations

import json
import sqlite3
import stat
from collections.abc import Iterator
from pathlib import Path

import pytest

from fedmerge import load_adapter
from tests.deployment.live import NGINX, Live, federation

pytestmark = [
    pytest.mark.slow,
    pytest.mark.timeout(3000),
    pytest.mark.skipif(NGINX is None, reason="nginx is not installed (Debian: apt-get install nginx)"),
]


@pytest.fixture(scope="module")
def live(tmp_path_factory: pytest.TempPathFactory) -> Iterator[Live]:
    with federation(tmp_path_factory.mktemp("live"), policy={"max-rounds": 3}, proxies=True) as running:
        yield running
    assert not running.left(), "a process of the federation is left"


@pytest.fixture(scope="module")
def run(live: Live) -> str:
    """A run of one round that has ended; as an operator would, it is submitted again where it was lost."""
    for _ in range(3):
        number = live.submit(**{"run.rounds": 1})
        if live.wait(number, 2000) == "finished:completed":
            return number
        assert live.revive(), live.tails()
    raise AssertionError(live.tails())


def test_a_round_on_real_text_gives_an_adapter_of_all_silos(live: Live, run: str) -> None:
    folder = live.folder(run)
    assert folder.is_relative_to(live.home / "state" / "server" / "runs")
    adapter = load_adapter(folder / "adapter")
    assert any(bool(tensor.abs().sum() > 0) for name, tensor in adapter.tensors.items() if "lora_B" in name)
    result = json.loads((folder / "result.json").read_text())
    assert result["silos"] == list(live.silos) and result["kept"] == "merged" and not result["refused"]
    assert len((folder / "metrics.jsonl").read_text().splitlines()) == 1


def test_flower_says_what_happened(live: Live, run: str) -> None:
    status = live.call("status")
    assert "completed" in status
    for silo in live.silos:
        assert silo in status
    assert "mean over silos" in live.call("logs", run)


def test_every_node_came_through_the_proxies(live: Live, run: str) -> None:
    calls = [line for line in live.log("superlink").splitlines() if "POST /v1/fleet/" in line]
    assert calls and all("127.0.0.1" in line for line in calls)
    for silo in live.silos:
        assert f"--superlink 127.0.0.1:{port_of(live, silo)}" in command_line(live.pid(f"supernode/{silo}"))


def port_of(live: Live, silo: str) -> int:
    return next(each.proxy_port for each in live.made.silos if each.name == silo)


def command_line(pid: int) -> str:
    return Path(f"/proc/{pid}/cmdline").read_bytes().replace(b"\0", b" ").decode()


def test_what_is_written_is_its_owners(live: Live, run: str) -> None:
    database = live.home / "state" / "server" / "state.db"
    assert stat.S_IMODE(database.stat().st_mode) == 0o600
    with sqlite3.connect(f"file:{database}?mode=ro", uri=True) as opened:
        assert opened.execute("PRAGMA schema_version").fetchone()
    for party in (live.server, *map(live.site, live.silos)):
        assert not [path for path in party.rglob("*.key") if path.stat().st_mode & 0o077]


def test_registering_again_changes_nothing(live: Live) -> None:
    assert live.call("register") == ""


def test_a_revoked_silo_is_forgotten_by_flower_and_shut_out_by_the_proxy(live: Live) -> None:
    from fedmerge.deployment.revocation import revoke

    gone = live.silos[-1]
    done = revoke(live.out, gone)
    assert done.unregistered
    assert not (live.server / "nodes" / f"{gone}.id").exists()
    assert live.register() is None and not (live.server / "nodes" / f"{gone}.id").exists()
    assert live.flat()["data.silos"] == ", ".join(live.silos[:-1])
    live.wait_for(lambda: not live.alive(f"supernode/{gone}") or "403" in live.log(f"supernode/{gone}")
                  or live.online() == len(live.silos) - 1, "the node is out", 600)  # fmt: skip
