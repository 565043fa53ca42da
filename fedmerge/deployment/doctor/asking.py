"""One request to one address, with or without TLS; who is there is not checked here, `tls` does that."""

from __future__ import annotations

import http.client
import socket
import ssl
from collections.abc import Mapping
from dataclasses import dataclass, field, replace
from pathlib import Path

from fedmerge.errors import ConfigError

SECONDS = 5.0
_BODY_BYTES = 4096


@dataclass(frozen=True)
class Place:
    """Where an API is asked.

    Args:
        host: name or address.
        port: its TCP port.
        ca: certificates that vouch for it; None where there are none.
        identity: certificate and key that the asker shows; None shows none.
        tls: False asks in plain text.
    """

    host: str
    port: int
    ca: Path | None = None
    identity: tuple[Path, Path] | None = None
    tls: bool = True

    def __str__(self) -> str:
        return f"{'https' if self.tls else 'http'}://{self.netloc}"

    @property
    def netloc(self) -> str:
        """Host and port."""
        return f"[{self.host}]:{self.port}" if ":" in self.host else f"{self.host}:{self.port}"

    def without_identity(self) -> Place:
        """The same place, asked by somebody who has no certificate."""
        return replace(self, identity=None)

    def in_plain_text(self) -> Place:
        """The same place, asked without TLS."""
        return replace(self, tls=False, identity=None)


@dataclass(frozen=True)
class Answer:
    """The answer to a request: its status, its headers in lower case, the first bytes of its body."""

    status: int
    headers: Mapping[str, str] = field(default_factory=dict)
    body: bytes = b""


class Unreachable(Exception):
    """Nothing listens there, or nothing that answers in time."""


class HungUp(Exception):
    """Somebody listens there, and ended the connection instead of answering."""


def place_of(address: str, ca: Path | None = None, identity: tuple[Path, Path] | None = None) -> Place:
    """Read "host:port".

    Raises:
        ConfigError: it is no such thing.

    Example:
        >>> place_of("fed.example.org:8443").port
        8443
    """
    host, colon, port = address.strip().rpartition(":")
    if not colon or not host or not port.isdecimal() or not 0 < int(port) < 2**16:
        raise ConfigError(f"{address!r} is no address: expected host:port, with a port of 1 to 65535")
    return Place(host.strip("[]"), int(port), ca, identity)


def ask(
    place: Place, path: str, *, method: str = "GET", body: bytes = b"", kind: str = "application/protobuf"
) -> Answer:
    """Send one request and read the beginning of the answer.

    Raises:
        Unreachable: nobody is there.
        HungUp: the TLS handshake or the request was refused without an answer.
    """
    connection = _connection(place)
    try:
        connection.request(
            method, path, body=body if method == "POST" else None, headers=_headers(method, kind)
        )
        response = connection.getresponse()
        headers = {name.lower(): value for name, value in response.getheaders()}
        return Answer(response.status, headers, response.read(_BODY_BYTES))
    except (ssl.SSLError, http.client.HTTPException, ConnectionResetError, BrokenPipeError) as error:
        raise HungUp(_reason(error)) from None
    except OSError as error:
        raise Unreachable(_reason(error)) from None
    finally:
        connection.close()


def unchecked(identity: tuple[Path, Path] | None = None) -> ssl.SSLContext:
    """A client's TLS that believes any certificate: it asks what a door answers, and sends no secret."""
    context = ssl.SSLContext(ssl.PROTOCOL_TLS_CLIENT)
    context.check_hostname = False
    context.verify_mode = ssl.CERT_NONE
    if identity is not None:
        context.load_cert_chain(*identity)
    return context


def handshake(place: Place, context: ssl.SSLContext) -> ssl.SSLSocket:
    """A TLS connection without a request; the caller closes it.

    Raises:
        Unreachable: nobody is there.
        HungUp: the handshake failed.
    """
    try:
        plain = socket.create_connection((place.host, place.port), timeout=SECONDS)
    except OSError as error:
        raise Unreachable(_reason(error)) from None
    try:
        return context.wrap_socket(plain, server_hostname=place.host)
    except OSError as error:
        plain.close()
        raise HungUp(_reason(error)) from error


def _connection(place: Place) -> http.client.HTTPConnection:
    if not place.tls:
        return http.client.HTTPConnection(place.host, place.port, timeout=SECONDS)
    context = unchecked(place.identity)
    return http.client.HTTPSConnection(place.host, place.port, timeout=SECONDS, context=context)


def _headers(method: str, kind: str) -> dict[str, str]:
    return {"content-type": kind, "accept": kind} if method == "POST" else {}


def _reason(error: Exception) -> str:
    if isinstance(error, ssl.SSLCertVerificationError):
        return error.verify_message
    if isinstance(error, ssl.SSLError):
        return (error.reason or "TLS error").lower().replace("_", " ")
    if isinstance(error, OSError):
        return (error.strerror or str(error) or type(error).__name__).lower()
    return str(error) or type(error).__name__
