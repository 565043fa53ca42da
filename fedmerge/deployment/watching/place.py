"""What a watcher must know of a server: its `server.toml`, and the connection in its FLWR_HOME."""

from __future__ import annotations

import tomllib
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from fedmerge.errors import ConfigError

SERVER_FILE = "server.toml"
DEFAULT_METRICS = "127.0.0.1:9464"


@dataclass(frozen=True)
class Place:
    """Where a federation's server runs.

    Args:
        federation: its name, which is also that of Flower's connection.
        server: the folder that describes it.
        runs: parent of the run folders; holds the watcher's own files, too.
        address: of the SuperLink, "host:port".
        certificate: of the CA that signed the SuperLink's; None where the connection has no TLS.
        metrics: where /metrics and /health are served, "host:port"; "" for nowhere.
    """

    federation: str
    server: Path
    runs: Path
    address: str
    certificate: Path | None
    metrics: str = DEFAULT_METRICS

    @property
    def health(self) -> str:
        """The URL at which the SuperLink says that it lives."""
        return f"{'https' if self.certificate else 'http'}://{self.address}/health"


def read_place(server: Path) -> Place:
    """The place that a server's folder, with `server.toml` and `flwr/`, describes.

    Raises:
        ConfigError: a file is missing or can't be read, or a key is missing or of another type.
    """
    server = server.expanduser().absolute()
    file = server / SERVER_FILE
    table = _read(file)
    federation = _text(table, "federation", file)
    address, certificate = _connection(server / "flwr" / "config.toml", federation)
    return Place(
        federation=federation,
        server=server,
        runs=(server / Path(_text(table, "runs", file)).expanduser()).absolute(),
        address=address,
        certificate=certificate,
        metrics=_text(table, "metrics", file, DEFAULT_METRICS),
    )


def _connection(file: Path, name: str) -> tuple[str, Path | None]:
    """Address and CA of Flower's connection of that name."""
    connections = _read(file).get("superlink", {})
    entry = connections.get(name) if isinstance(connections, dict) else None
    if not isinstance(entry, dict):
        raise ConfigError(f"{file}: there is no [superlink.{name}], the connection of this federation")
    address = _text(entry, "address", file)
    if entry.get("insecure"):
        return address, None
    return address, (file.parent / _text(entry, "root-certificates", file)).absolute()


def _read(file: Path) -> dict[str, Any]:
    try:
        return tomllib.loads(file.read_text(encoding="utf-8"))
    except OSError as error:
        raise ConfigError(
            f"{file}: can't be read ({error.strerror}); expected a folder that `fedmerge deploy init` wrote"
        ) from None
    except (tomllib.TOMLDecodeError, UnicodeDecodeError) as error:
        raise ConfigError(f"{file}: not valid TOML: {error}") from None


def _text(table: dict[str, Any], key: str, file: Path, default: str | None = None) -> str:
    value = table.get(key, default)
    if not isinstance(value, str) or (default is None and not value):
        raise ConfigError(f"{file}: {key} = {value!r}: expected text")
    return value
