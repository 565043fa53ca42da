"""`federation.toml`: one small file from which every party's folder is made."""

from __future__ import annotations

import ipaddress
import tomllib
from collections.abc import Mapping
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

from fedmerge.deployment.names import checked_name, checked_path, refuse_unknown
from fedmerge.deployment.site_policy import check_policy
from fedmerge.errors import ConfigError

SERVER = "server"
"""What the server is called where a party is named: no silo may be."""

LEAST_VALIDITY_DAYS = 1


@dataclass(frozen=True)
class Server:
    """The server's own place.

    Args:
        hosts: names and addresses by which sites reach it; they stand in its certificate.
        port: of its proxy, the only one that sites reach.
        superlink_port: of Flower's SuperLink, on the loopback interface only.
        folder: where OUT/server will lie on that machine.
        state: its folder for what it writes: database, runs, logs.
        bin: folder of the commands that `pip install` put there (flower-superlink, fedmerge).
    """

    hosts: tuple[str, ...]
    port: int = 8443
    superlink_port: int = 8000
    folder: str = "/etc/fedmerge"
    state: str = "/var/lib/fedmerge"
    bin: str = "/opt/fedmerge/bin"


@dataclass(frozen=True)
class Silo:
    """A silo's own place.

    Args:
        name: letters, digits and hyphens.
        data: file or folder of its rows, on its own machine.
        folder: where OUT/silos/<name> will lie on that machine.
        state: its folder for what it writes and what never leaves it.
        log: what left this site, a line a message.
        bin: folder of the commands that `pip install` put there.
        proxy_port: of its proxy, on the loopback interface only.
        runtime_port: of its SuperNode, on the loopback interface only.
        max_examples: the roster's cap of its weight in rows; 0 = none.
        base: where the base lies on its machine; "" = as the run says.
        network: whether a base that a run names may be fetched from the Hub.
        policy: what runs it takes part in; an absent key = anything goes.
    """

    name: str
    data: str
    folder: str = "/etc/fedmerge"
    state: str = "/var/lib/fedmerge"
    log: str = "/var/log/fedmerge/left.jsonl"
    bin: str = "/opt/fedmerge/bin"
    proxy_port: int = 8444
    runtime_port: int = 9094
    max_examples: int = 0
    base: str = ""
    network: bool = False
    policy: Mapping[str, Any] = field(default_factory=dict)


@dataclass(frozen=True)
class Federation:
    """A whole federation; `text` is the file it was read from."""

    name: str
    server: Server
    silos: tuple[Silo, ...]
    text: str

    @property
    def one_machine(self) -> bool:
        """Whether the server is reached over the loopback interface: all parties are on this machine."""
        return all(_is_loopback(host) for host in self.server.hosts)


_SERVER_KEYS = ("hosts", "port", "superlink-port", "folder", "state", "bin")
_SILO_KEYS = (
    "data", "folder", "state", "log", "bin", "proxy-port", "runtime-port", "max-examples", "base", "network",
    "policy",
)  # fmt: skip


def read_federation(path: Path) -> Federation:
    """Read and check a federation.

    Raises:
        ConfigError: no such file, no TOML (a name that stands there twice), an unknown or missing key, an
            illegal name, path, port or policy.
    """
    try:
        text = path.read_text(encoding="utf-8")
    except OSError as error:
        raise ConfigError(f"{path}: can't be read ({error.strerror})") from None
    except UnicodeDecodeError:
        raise ConfigError(f"{path}: not UTF-8") from None
    try:
        return parse_federation(text)
    except ConfigError as error:
        raise ConfigError(f"{path}: {error}") from None


def parse_federation(text: str) -> Federation:
    r"""The federation that a text describes; raises as `read_federation`.

    Example:
        >>> made = parse_federation('name="heart"\n[server]\nhosts=["fed.org"]\n[silos.a]\ndata="/srv/a"')
        >>> made.name, made.server.port, [silo.name for silo in made.silos]
        ('heart', 8443, ['a'])
    """
    try:
        table = tomllib.loads(text)
    except tomllib.TOMLDecodeError as error:
        raise ConfigError(
            f"not valid TOML (a name that stands there twice is not, either): {error}"
        ) from None
    refuse_unknown(table, ("name", "server", "silos"), "the top level")
    name = checked_name(table.get("name"), "name")
    server = _server(_table(table, "server"))
    tables = _table(table, "silos")
    silos = tuple(_silo(silo, _table(tables, silo, "silos.")) for silo in sorted(tables))
    made = Federation(name, server, silos, text)
    _check_silo_names(silos)
    _check_one_machine(made)
    return made


def _server(table: Mapping[str, Any]) -> Server:
    refuse_unknown(table, _SERVER_KEYS, "[server]")
    hosts = table.get("hosts")
    if not isinstance(hosts, list) or not hosts:
        raise ConfigError('[server] needs hosts = ["fed.example.org"]: names or addresses that sites reach')
    values = {key.replace("-", "_"): value for key, value in table.items()} | {
        "hosts": tuple(_host(host) for host in hosts)
    }
    server = Server(**values)
    _check_ports({"port": server.port, "superlink-port": server.superlink_port}, "[server]")
    for key in ("folder", "state", "bin"):
        checked_path(getattr(server, key), f"[server] {key}")
    return server


def _silo(name: str, table: Mapping[str, Any]) -> Silo:
    where = f"[silos.{name}]"
    checked_name(name, where)
    refuse_unknown(table, _SILO_KEYS, where)
    if "data" not in table:
        raise ConfigError(f'{where} needs data = "/srv/rows.parquet": file or folder of its rows')
    silo = Silo(name, **{key.replace("-", "_"): value for key, value in table.items()})
    _check_ports({"proxy-port": silo.proxy_port, "runtime-port": silo.runtime_port}, where)
    for key in ("folder", "state", "bin", "log"):
        checked_path(getattr(silo, key), f"{where} {key}")
    checked_path(silo.data, f"{where} data", plain=False)
    if silo.base:
        checked_path(silo.base, f"{where} base", plain=False)
    if not isinstance(silo.network, bool):
        raise ConfigError(f"{where} network = {silo.network!r}: expected true or false")
    if type(silo.max_examples) is not int or silo.max_examples < 0:
        raise ConfigError(f"{where} max-examples = {silo.max_examples!r}: expected rows, or 0 for no cap")
    check_policy(silo.policy, where)
    return silo


def _check_silo_names(silos: tuple[Silo, ...]) -> None:
    if not silos:
        raise ConfigError("there is no silo: expected at least one table [silos.<name>]")
    seen: dict[str, str] = {}
    for silo in silos:
        if silo.name.lower() == SERVER:
            raise ConfigError(f"a silo can't be called {silo.name!r}: that is what the server is called")
        if other := seen.get(silo.name.lower()):
            raise ConfigError(f"silos {other!r} and {silo.name!r} have the same name")
        seen[silo.name.lower()] = silo.name


def _check_one_machine(made: Federation) -> None:
    """On one machine no two parties share a port or a folder."""
    if not made.one_machine:
        return
    uses: dict[object, str] = {}
    for owner, values in uses_of(made).items():
        for what, value in values.items():
            if value in uses:
                raise ConfigError(
                    f"all parties are on one machine (hosts = {list(made.server.hosts)}), and {owner} {what} "
                    f"= {value!r} is also that of {uses[value]}"
                )
            uses[value] = f"{owner} {what}"


def uses_of(made: Federation) -> dict[str, dict[str, object]]:
    """The ports, folders and files that each party needs for itself, by its table's name."""
    server = made.server
    ours: dict[str, object] = {"port": server.port, "superlink-port": server.superlink_port}
    found = {"[server]": ours | {"folder": server.folder, "state": server.state}}
    for silo in made.silos:
        found[f"[silos.{silo.name}]"] = {
            "proxy-port": silo.proxy_port, "runtime-port": silo.runtime_port,
            "folder": silo.folder, "state": silo.state, "log": silo.log,
        }  # fmt: skip
    return found


def _check_ports(ports: Mapping[str, object], where: str) -> None:
    for key, port in ports.items():
        if type(port) is not int or not 1 <= port <= 65535:
            raise ConfigError(f"{where} {key} = {port!r}: expected a port, 1 to 65535")
    first, second = ports
    if ports[first] == ports[second]:
        raise ConfigError(f"{where}: {first} and {second} are both {ports[first]}")


def _host(host: object) -> str:
    """A DNS name or an address, as a certificate carries it."""
    if isinstance(host, str) and len(host) <= 253:
        if _is_address(host):
            return host
        labels = host.split(".")
        if all(label.replace("-", "a").isalnum() and label.isascii() for label in labels):
            return host
    raise ConfigError(f"[server] hosts: {host!r} is neither a DNS name nor an address (no port, no https://)")


def _is_address(host: str) -> bool:
    try:
        ipaddress.ip_address(host)
    except ValueError:
        return False
    return True


def _is_loopback(host: str) -> bool:
    return ipaddress.ip_address(host).is_loopback if _is_address(host) else host == "localhost"


def _table(parent: Mapping[str, Any], key: str, head: str = "") -> Mapping[str, Any]:
    value = parent.get(key)
    if not isinstance(value, Mapping):
        raise ConfigError(f"there is no table [{head}{key}]")
    return value
