"""A small web server of two pages, /metrics and /health; it takes GET and nothing else."""

from __future__ import annotations

import json
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from http.server import BaseHTTPRequestHandler, ThreadingHTTPServer
from threading import Thread

from prometheus_client import CollectorRegistry
from prometheus_client.exposition import CONTENT_TYPE_LATEST, generate_latest

from fedmerge.deployment.health import Health
from fedmerge.errors import ConfigError

_SECONDS = 10.0  # for a client that connects, and then says nothing


@contextmanager
def serving(address: str, metrics: CollectorRegistry, health: Callable[[], Health]) -> Iterator[str]:
    """Serve while inside.

    Args:
        address: "host:port"; port 0 takes a free one. "" serves nothing.
        metrics: what /metrics shows.
        health: asked for each /health.

    Yields:
        The address that is served, "" for none.

    Raises:
        ConfigError: no such address, or one that can't be taken.
    """
    if not address:
        yield ""
        return
    host, port = _split(address)
    try:
        server = _Server((host, port), _handler(metrics, health))
    except OSError as error:
        raise ConfigError(f"--metrics {address}: can't be served ({error.strerror or error})") from None
    thread = Thread(target=server.serve_forever, name="metrics", daemon=True)
    thread.start()
    try:
        yield f"{host}:{server.server_address[1]}"
    finally:
        server.shutdown()
        thread.join()
        server.server_close()


class _Server(ThreadingHTTPServer):
    daemon_threads = True
    block_on_close = False  # a client that hangs shall not keep the watcher from ending


def _split(address: str) -> tuple[str, int]:
    """Host and port.

    Example:
        >>> _split("127.0.0.1:9464")
        ('127.0.0.1', 9464)
    """
    host, _, port = address.rpartition(":")
    if not host or not port.isdecimal() or int(port) > 65535:
        raise ConfigError(f"--metrics {address!r}: expected HOST:PORT, such as 127.0.0.1:9464")
    return host, int(port)


def _handler(metrics: CollectorRegistry, health: Callable[[], Health]) -> type[BaseHTTPRequestHandler]:
    def page(path: str) -> tuple[int, str, bytes]:
        if path == "/metrics":
            return 200, CONTENT_TYPE_LATEST, generate_latest(metrics)
        if path == "/health":
            found = health()
            return found.status, "application/json", json.dumps(found.payload()).encode() + b"\n"
        return 404, "text/plain", b"there are /metrics and /health\n"

    class Handler(BaseHTTPRequestHandler):
        timeout = _SECONDS
        server_version, sys_version = "fedmerge", ""

        def do_GET(self) -> None:
            self._answer(*page(self.path.partition("?")[0]))

        def send_error(self, code: int, message: str | None = None, explain: str | None = None) -> None:
            """Other methods are 501 to http.server; 405 is what they are here."""
            self._answer(405 if code == 501 else code, "text/plain", b"only GET\n" if code == 501 else b"\n")

        def _answer(self, status: int, kind: str, body: bytes) -> None:
            self.send_response(status)
            self.send_header("Content-Type", kind)
            self.send_header("Content-Length", str(len(body)))
            self.end_headers()
            self.wfile.write(body)

        def log_message(self, format: str, *values: object) -> None:
            """Nothing: the log tells of the run."""

    return Handler
