"""The two proxies, with a SuperLink's stand-in behind them that tells what reached it."""

from __future__ import annotations

import http.client
import http.server
import socket
import ssl
import subprocess
import threading
import time
from collections.abc import Iterator
from concurrent.futures import ThreadPoolExecutor
from dataclasses import dataclass
from pathlib import Path

import pytest
import tomli_w

from fedmerge.deployment.federation import Federation, parse_federation
from fedmerge.deployment.founding import found
from fedmerge.deployment.revocation import revoke
from tests.deployment.live import NGINX, federation_table

pytestmark = pytest.mark.skipif(
    NGINX is None, reason="nginx is not installed (Debian: apt-get install nginx)"
)
PULL = "/v1/fleet/pull-messages"
LOCKED = b"the database is locked"


class StandIn(http.server.BaseHTTPRequestHandler):
    """Answers with the path that it was asked for and the number of bytes that came."""

    protocol_version = "HTTP/1.1"

    def do_POST(self) -> None:
        sent = self.rfile.read(int(self.headers["Content-Length"]))
        body = f"{self.path} {len(sent)}".encode()
        self.send_response(500 if sent == LOCKED else 200)
        self.send_header("Content-Length", str(len(body)))
        self.end_headers()
        self.wfile.write(body)

    def log_message(self, *_: object) -> None:
        pass


@dataclass(frozen=True)
class World:
    out: Path
    made: Federation
    proxies: dict[str, subprocess.Popen[bytes]]

    @property
    def site(self) -> Path:
        return self.out / "silos" / "a"

    def ask(
        self,
        path: str,
        *,
        method: str = "POST",
        body: bytes = b"",
        port: int = 0,
        pair: str | None = "client",
    ) -> tuple[int, str]:
        """Ask the server's proxy as somebody with a pair of the site's; 0 where no connection came about."""
        context = ssl.create_default_context(cafile=str(self.site / "ca.crt"))
        if pair:
            context.load_cert_chain(self.site / f"{pair}.pem", self.site / f"{pair}.key")
        connection = http.client.HTTPSConnection(
            "127.0.0.1", port or self.made.server.port, context=context, timeout=10
        )
        try:
            connection.request(method, path, body)
            answer = connection.getresponse()
            return answer.status, answer.read().decode(errors="replace")
        except (ssl.SSLError, ConnectionError):
            return 0, ""
        finally:
            connection.close()

    def through_site(self, path: str, body: bytes = b"") -> tuple[int, str]:
        """Ask the site's own proxy, as its SuperNode does: without a certificate."""
        return self.ask(path, body=body, port=self.made.silos[0].proxy_port, pair=None)


def wait_open(port: int) -> None:
    end = time.monotonic() + 20
    while time.monotonic() < end:
        with socket.socket() as tried:
            if tried.connect_ex(("127.0.0.1", port)) == 0:
                return
        time.sleep(0.02)
    raise AssertionError(f"nothing listens on {port}")


@pytest.fixture(scope="module")
def world(tmp_path_factory: pytest.TempPathFactory) -> Iterator[World]:
    home = tmp_path_factory.mktemp("proxy")
    made = parse_federation(tomli_w.dumps(federation_table(home, ["a"])))
    out = found(made, home / "out")
    link = http.server.ThreadingHTTPServer(("127.0.0.1", made.server.superlink_port), StandIn)
    context = ssl.SSLContext(ssl.PROTOCOL_TLS_SERVER)
    context.load_cert_chain(out / "server/superlink.pem", out / "server/superlink.key")
    link.socket = context.wrap_socket(link.socket, server_side=True)
    threading.Thread(target=link.serve_forever, daemon=True).start()
    commands = {"server": out / "server/bin/proxy.sh", "site": out / "silos/a/bin/proxy.sh"}
    proxies = {name: subprocess.Popen([str(path)], stderr=subprocess.PIPE) for name, path in commands.items()}
    try:
        wait_open(made.server.port)
        wait_open(made.silos[0].proxy_port)
        yield World(out, made, proxies)
    finally:
        for proxy in proxies.values():
            proxy.terminate()
            proxy.communicate(timeout=20)
        link.shutdown()
        link.server_close()


def test_a_site_reaches_what_its_node_calls(world):
    assert world.ask(PULL, body=b"x" * 7) == (200, f"{PULL} 7")
    assert world.through_site(PULL, b"x" * 9) == (200, f"{PULL} 9")


@pytest.mark.parametrize(
    "path",
    [
        "/", "/health", "/docs", "/openapi.json",
        "/v1/control/start-run", "/v1/control/list-runs", "/v1/control/register-node",
        "/v1/runtime/acquire-task", "/v1/runtime/pull-task-input", "/v1/runtime/push-object",
        "/v1/fleet/register-node", "/v1/fleet/unregister-node", "/v1/fleet/", "/v1/fleet",
        "/v1/fleet/../control/start-run", "/v1/fleet/%2e%2e/control/start-run",
        "/v1/fleet/pull-messages/../../control/start-run", "//v1//control/start-run",
        "/v1/fleet/..%2fcontrol/start-run", "/V1/FLEET/pull-messages",
        "/v1/fleet/pull-messages%00", "/v1/fleet/pull-messages/x",
    ],
)  # fmt: skip
def test_everything_else_is_refused(world, path):
    assert world.ask(path)[0] in (400, 403)
    assert world.through_site(path)[0] in (400, 403)


def test_what_goes_on_is_the_path_that_was_checked(world):
    assert world.ask("/v1/control/start-run/../../fleet/pull-messages")[1].startswith(f"{PULL} ")


def test_other_methods_are_refused(world):
    assert {world.ask(PULL, method=method)[0] for method in ("GET", "PUT", "DELETE", "OPTIONS")} == {403}


@pytest.mark.parametrize("pair", [None, "runtime"])
def test_nobody_without_a_clients_certificate_comes_in(world, pair):
    assert world.ask(PULL, pair=pair)[0] in (0, 400, 403)


def test_a_chunk_passes_and_a_body_beyond_the_limit_does_not(world):
    chunk = b"\x01" * (5 * 1024 * 1024 + 4096)
    assert world.through_site("/v1/fleet/push-object", chunk)[0] == 200
    assert world.ask("/v1/fleet/push-object", body=b"\x01" * (13 * 1024 * 1024))[0] in (0, 413)


@pytest.mark.slow
def test_an_adapter_of_100_mb_passes_and_haste_is_slowed_not_refused(world):
    chunk = b"\x01" * (5 * 1024 * 1024)
    with ThreadPoolExecutor(2) as two:  # as Flower does
        answers = list(two.map(lambda _: world.through_site("/v1/fleet/push-object", chunk)[0], range(20)))
        answers += list(two.map(lambda _: world.through_site(PULL)[0], range(400)))
    assert set(answers) == {200}


def test_a_call_that_the_superlink_could_not_serve_is_to_be_made_again(world):
    assert world.ask(PULL, body=LOCKED)[0] == world.through_site(PULL, LOCKED)[0] == 503


def test_the_superlink_and_both_proxies_are_on_the_loopback_interface_here(world):
    assert "listen 127.0.0.1:" in (world.out / "server/nginx.conf").read_text()
    assert "--host 127.0.0.1" in (world.out / "server/bin/superlink.sh").read_text()
    assert "listen 127.0.0.1:" in (world.site / "nginx.conf").read_text()


def test_a_revoked_site_stays_outside_after_a_reload(world):
    assert world.ask(PULL)[0] == 200
    revoke(world.out, "a")
    subprocess.run([str(world.out / "server/bin/proxy.sh"), "reload"], check=True)
    end = time.monotonic() + 20
    while world.ask(PULL)[0] == 200 and time.monotonic() < end:
        time.sleep(0.05)
    assert world.ask(PULL)[0] in (0, 400, 403)
    assert world.through_site(PULL)[0] in (400, 403)
