"""Faults 42 and 43: a node talks to its own server only, and the server to no node that it does not know."""

from __future__ import annotations

import datetime
import os
import shutil
import socket
import ssl
import subprocess
import sys
import threading
from collections.abc import Iterator
from contextlib import contextmanager, suppress
from pathlib import Path

import pytest

from fedmerge.deployment import certificates
from fedmerge.deployment.certificates import Pair, issue_server, new_authority, read_authority
from fedmerge.deployment.office import read_pair

from .live import federation, free_ports

pytestmark = [pytest.mark.slow, pytest.mark.timeout(900)]

BIN = Path(sys.executable).parent


def node(link: str, trusted: Path, key: Path, home: Path) -> subprocess.Popen[str]:
    """A SuperNode that was told to trust this CA."""
    secret = home / "node.secret"
    secret.write_text("x" * 64)
    secret.chmod(0o600)
    return subprocess.Popen(
        [BIN / "flower-supernode", "--superlink", link, "--root-certificates", trusted,
         "--auth-supernode-private-key", key, "--superexec-auth-secret-file", secret,
         "--isolation", "process", "--host", "127.0.0.1", "--port", str(free_ports(1)[0])],
        env={**os.environ, "FLWR_HOME": str(home / "flwr"), "NO_PROXY": "127.0.0.1,127.0.0.2,localhost"},
        stdout=subprocess.PIPE, stderr=subprocess.STDOUT, text=True,
    )  # fmt: skip


def ends_refused(process: subprocess.Popen[str]) -> str:
    """What a node said that ended by itself, with a failure."""
    try:
        said, _ = process.communicate(timeout=200)
    except subprocess.TimeoutExpired:
        process.kill()
        pytest.fail(f"the node did not give up: {process.communicate()[0][-2000:]}")
    assert process.returncode != 0, said
    return said


@contextmanager
def door(folder: Path, pair: Pair | None) -> Iterator[tuple[int, list[bytes]]]:
    """A server that answers under this certificate, or without TLS: its port, and what it was told."""
    heard: list[bytes] = []
    context = None
    if pair is not None:
        (folder / "door.pem").write_bytes(pair.certificate)
        (folder / "door.key").write_bytes(pair.key)
        context = ssl.SSLContext(ssl.PROTOCOL_TLS_SERVER)
        context.load_cert_chain(folder / "door.pem", folder / "door.key")

    def answer(listener: socket.socket) -> None:
        while True:
            try:
                plain, _ = listener.accept()
            except OSError:
                return
            with suppress(OSError), plain:
                plain.settimeout(10)
                talk = plain if context is None else context.wrap_socket(plain, server_side=True)
                heard.append(talk.recv(4096))
                talk.sendall(b"HTTP/1.1 400 Bad Request\r\nContent-Length: 0\r\n\r\n")

    with socket.create_server(("127.0.0.1", 0)) as listener:
        threading.Thread(target=answer, args=(listener,), daemon=True).start()
        yield listener.getsockname()[1], heard


@pytest.mark.fault(42)
@pytest.mark.parametrize("wrong", ["no TLS", "CA", "expired", "name"])
def test_a_node_tells_nothing_to_a_server_that_is_not_its_own(wrong, out, tmp_path, monkeypatch):
    own = read_authority(read_pair(out / "ca", "ca.crt", "ca.key"), "ca")
    hosts = ["localhost", "127.0.0.1"]
    if wrong == "expired":
        before = datetime.datetime.now(datetime.UTC) - datetime.timedelta(days=5000)
        monkeypatch.setattr(certificates, "_now", lambda: before)
    pair = {
        "no TLS": lambda: None,
        "CA": lambda: issue_server(new_authority("other"), "superlink", hosts),
        "expired": lambda: issue_server(own, "superlink", hosts),
        "name": lambda: issue_server(own, "superlink", ["fed.example.org"]),
    }[wrong]()
    site = out / "silos" / "hospital-a"
    with door(tmp_path, pair) as (port, heard):
        said = ends_refused(node(f"127.0.0.1:{port}", out / "ca" / "ca.crt", site / "node.key", tmp_path))
    assert all(words.startswith(b"\x16\x03") for words in heard)  # no more than the greeting of TLS
    assert len(heard) == (wrong == "no TLS")
    assert "Failed to initialize the connection to the SuperLink" in said


@pytest.mark.fault(43)
def test_the_server_takes_no_key_that_it_does_not_know_nor_one_twice(tmp_path):
    ssh_keygen = shutil.which("ssh-keygen") or pytest.skip("there is no ssh-keygen")
    stranger = tmp_path / "stranger"
    subprocess.run([ssh_keygen, "-q", "-t", "ecdsa", "-b", "384", "-N", "", "-f", stranger], check=True)
    with federation(tmp_path / "live", silos=("hospital-a", "hospital-b"), start=False) as live:
        live.start_server()
        live.register()
        live.start("supernode/hospital-a")
        live.wait_for(lambda: live.online() == 1, "the node is there")
        link, trusted = f"127.0.0.1:{live.made.server.superlink_port}", live.server / "ca.crt"
        live.call("unregister", "hospital-b")
        keys = [stranger, live.site("hospital-a") / "node.key", live.site("hospital-b") / "node.key"]
        nodes = []
        for number, key in enumerate(keys):
            home = tmp_path / f"home-{number}"
            home.mkdir()
            nodes.append(node(link, trusted, key, home))
        for process in nodes:
            assert "Failed to initialize the connection to the SuperLink" in ends_refused(process)
        assert live.alive("supernode/hospital-a") and live.online() == 1
