"""On Flower's defaults the doctor finds each open door."""

from __future__ import annotations

import json
import os
from pathlib import Path

import pytest
from typer.testing import CliRunner

from fedmerge.cli.app import app

from .authority import Authority
from .live import NGINX, federation
from .stock import superlink


def doctor(*arguments: object) -> tuple[int, dict[str, str]]:
    """The exit status of `fedmerge deploy doctor`, and the state of each door."""
    result = CliRunner().invoke(app, ["deploy", "doctor", "--json", *map(str, arguments)])
    findings = json.loads(result.stdout)["findings"]
    assert all(finding["close"] for finding in findings if finding["state"] == "open"), findings
    return result.exit_code, {finding["door"]: finding["state"] for finding in findings}


def opened(states: dict[str, str]) -> set[str]:
    return {door for door, state in states.items() if state == "open"}


APIS = {
    "control API from a site's address",
    "runtime API from a site's address",
    "tasks from a site's address",
    "API description from a site's address",
}
FLAGS = {"registered SuperNodes", "isolation of apps", "packages at run time"}
DATABASE = {"database state.db", "database state.db-wal", "database state.db-shm"}


def test_flowers_superlink_without_tls(tmp_path: Path) -> None:
    tmp_path.chmod(0o755)
    with superlink(tmp_path, "--insecure") as port:
        status, states = doctor("--address", f"127.0.0.1:{port}", "--database", tmp_path / "state.db")
    assert status == 1
    assert opened(states) == {"TLS", "TLS of the SuperLink"} | APIS | FLAGS | DATABASE
    assert states["clock"] == "closed"


@pytest.mark.slow
def test_flowers_superlink_with_tls_and_default_isolation(tmp_path: Path) -> None:
    authority = Authority()
    ca = authority.write(tmp_path)
    certificate, key = authority.issue(tmp_path / "superlink.pem", days=20, hosts=("127.0.0.1",))
    files = ("--ssl-ca-certfile", ca, "--ssl-certfile", certificate, "--ssl-keyfile", key)
    with superlink(tmp_path, *map(str, files)) as port:
        status, states = doctor("--address", f"127.0.0.1:{port}", "--ca", ca)
        _, other_name = doctor("--address", f"localhost:{port}", "--ca", ca)
        _, other_authority = doctor("--address", f"127.0.0.1:{port}", "--ca", Authority().write(tmp_path))
    assert status == 1
    ending = f"certificate served at 127.0.0.1:{port}"
    assert opened(states) == {"client certificates", ending} | APIS | FLAGS
    assert {states[door] for door in ("TLS", "old TLS", "server's certificate")} == {"closed"}
    assert other_name["server's certificate"] == other_authority["server's certificate"] == "open"


@pytest.mark.slow
def test_a_superlink_with_a_secret_hands_out_no_task(tmp_path: Path) -> None:
    secret = tmp_path / "superexec.secret"
    secret.write_text("s" * 64)
    secret.chmod(0o600)
    with superlink(
        tmp_path, "--insecure", "--isolation", "process", "--superexec-auth-secret-file", str(secret)
    ) as port:
        _, states = doctor("--address", f"127.0.0.1:{port}")
    assert states["tasks from a site's address"] == "closed"
    assert states["isolation of apps"] == "closed"
    assert states["control API from a site's address"] == "open"


def test_nobody_there_is_not_closed(tmp_path: Path) -> None:
    status, states = doctor("--address", "127.0.0.1:1")
    assert status == 0
    assert set(states.values()) == {"unknown"}


@pytest.mark.parametrize(
    ("arguments", "said"),
    [
        ([], "either a party's folder or --address"),
        (["--address", "localhost"], "is no address"),
        (["--address", "localhost:99999"], "is no address"),
        (["."], "is no party's folder"),
    ],
)
def test_bad_input(tmp_path: Path, monkeypatch: pytest.MonkeyPatch, arguments: list[str], said: str) -> None:
    monkeypatch.chdir(tmp_path)
    result = CliRunner().invoke(app, ["deploy", "doctor", "--json", *arguments])
    assert result.exit_code == 1
    assert said in json.loads(result.stdout)["error"]["message"]


def test_shown_to_a_person() -> None:
    result = CliRunner().invoke(app, ["deploy", "doctor", "--address", "127.0.0.1:1"])
    assert result.exit_code == 0
    assert "0 open" in result.stdout


@pytest.mark.slow
@pytest.mark.skipif(NGINX is None, reason="nginx is not installed")
def test_our_own_deployment_has_no_open_door(tmp_path: Path) -> None:
    with federation(tmp_path, ("hospital-a",), proxies=True) as live:
        live.wait_for(lambda: live.online() == 1, "the site is there", 300.0)
        server, at_server = doctor(live.server)
        site, at_site = doctor(live.site("hospital-a"))
    if os.geteuid() == 0:  # the units run as a user; this test, started by root, does not
        at_server, at_site = (
            {door: state for door, state in states.items() if not door.startswith("user of fl")}
            for states in (at_server, at_site)
        )
    else:
        assert server == site == 0
    assert opened(at_server) == set()
    assert opened(at_site) == set()
    asked = {"control API from a site's address", "tasks from a site's address", "client certificates", "TLS"}
    assert {at_server[door] for door in asked} == {at_site[door] for door in asked} == {"closed"}
    assert at_site["fleet API with a site's certificate"] == at_site["registration of nodes"] == "closed"
    assert at_server["registered SuperNodes"] == at_server["isolation of apps"] == "closed"
    assert {door for door, state in at_server.items() if state == "unknown"} == {"versions"}  # no run yet
    assert "unknown" not in at_site.values()
