"""The examination of a party's folder: what its operator can see from where it runs."""

from __future__ import annotations

import ipaddress
from collections.abc import Iterator
from datetime import UTC, datetime
from pathlib import Path

from fedmerge.deployment.doctor import (
    apis,
    certificates,
    chain,
    disk,
    examination,
    modes,
    processes,
    proxies,
    scripts,
    trust,
    units,
    versions,
)
from fedmerge.deployment.doctor.asking import Place, place_of
from fedmerge.deployment.doctor.finding import NOTE, Finding
from fedmerge.deployment.doctor.scripts import Scripts
from fedmerge.errors import ConfigError

_SERVER = ("server.toml", "roster.toml", "superlink.pem")
_SITE = ("site.toml", "node.key", "client.pem")
FLOWERS_PORTS = (8000, 9091, 9092, 9093)
"""Ports of a SuperLink by Flower's defaults, and by those of its older guides."""


def examine(folder: Path) -> Iterator[Finding]:
    """All findings about a party's folder and what runs from it.

    Raises:
        ConfigError: it is no party's folder.
    """
    folder = folder.expanduser().absolute()
    if any((folder / name).exists() for name in _SERVER):
        yield from _server(scripts.read(folder))
    elif any((folder / name).exists() for name in _SITE):
        yield from _site(scripts.read(folder))
    else:
        expected = f"expected {_SERVER[0]} (a server's) or {_SITE[0]} (a site's) in it"
        raise ConfigError(f"{folder} is no party's folder: {expected}")


def _server(party: Scripts) -> Iterator[Finding]:
    folder, given = party.folder, party.flags("superlink.sh")
    yield from _files(folder)
    yield from trust.server(folder)
    yield trust.told_to_sign(folder)
    yield from trust.metrics(folder)
    yield trust.installed_only(folder)
    yield from units.of_folder(folder)
    yield from proxies.of_server(folder)
    yield from _processes()
    if given.get("--port", "").isdecimal():
        link = Place("127.0.0.1", int(given["--port"]), folder / "ca.crt")
        yield from examination.of_superlink(link.port)
        yield apis.isolation(examination.as_spoken(link), "this machine")
        yield apis.local_control(examination.as_spoken(link))
    for address in proxies.own_addresses(folder):
        yield from examination.of_address(place_of(address, folder / "ca.crt"))
    if database := given.get("--database"):
        yield from examination.of_database(Path(database))
    yield from _runs(trust.runs(folder))


def _site(party: Scripts) -> Iterator[Finding]:
    folder, given = party.folder, party.flags("supernode.sh")
    yield from _files(folder)
    yield from trust.site(folder)
    yield trust.told_of_site(folder)
    yield trust.installed_only(folder)
    yield from units.of_folder(folder)
    yield from proxies.of_site(folder)
    yield from _processes()
    if given.get("--port", "").isdecimal():
        runtime = Place("127.0.0.1", int(given["--port"]), folder / "ca.crt")
        yield apis.isolation(examination.as_spoken(runtime), "this machine")
        if (process := processes.listening(runtime.port, "flower-supernode")) is not None:
            yield processes.bound(process, runtime.port)
    identity = (folder / "client.pem", folder / "client.key")
    for address in proxies.server_addresses(folder):
        place = place_of(address, folder / "ca.crt", identity)
        yield apis.fleet(place)
        yield from examination.of_address(place)
        yield from _past_the_proxy(place)
    yield from _kept(folder)


def _files(folder: Path) -> Iterator[Finding]:
    yield from modes.secrets(folder)
    yield from certificates.of_folder(folder, datetime.now(UTC))


def _processes() -> Iterator[Finding]:
    found = processes.running()
    yield from processes.as_root(found)
    yield from processes.tokens(found)


def _runs(folder: Path | None) -> Iterator[Finding]:
    if folder is None:
        return
    run = versions.last_run(folder)
    yield from versions.agree(run)
    if run is not None:
        yield chain.whole(run)
        yield modes.private(run, f"run {run.name}", "UMask=0077 in the unit; chmod 700 on its folder")
    yield disk.room(folder, "the runs")


def _kept(folder: Path) -> Iterator[Finding]:
    """What a site keeps to itself: its rows, its state, its log."""
    for name, path in trust.places(folder):
        yield modes.private(path, f"site's {name}", f"chmod o-rwx {path}")
        if name == "state":
            yield disk.room(path, "the site's state")


def _past_the_proxy(place: Place) -> Iterator[Finding]:
    """Whether a SuperLink can be reached beside its proxy."""
    if _is_loopback(place.host):
        told = "the server is on this machine: its loopback ports are not another machine's"
        yield Finding("SuperLink past the proxy", NOTE, place.netloc, told)
        return
    for port in FLOWERS_PORTS:
        if port != place.port:
            yield apis.shut(examination.as_spoken(Place(place.host, port, place.ca)))


def _is_loopback(host: str) -> bool:
    try:
        return ipaddress.ip_address(host).is_loopback
    except ValueError:
        return host == "localhost"
