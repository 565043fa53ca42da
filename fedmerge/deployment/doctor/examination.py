"""Which probes look at what: an address alone, a server's folder, a site's folder."""

from __future__ import annotations

from collections.abc import Iterator
from dataclasses import replace
from datetime import UTC, datetime
from pathlib import Path

from fedmerge.deployment.doctor import apis, clocks, disk, modes, processes, tls
from fedmerge.deployment.doctor.asking import Place, Unreachable
from fedmerge.deployment.doctor.finding import UNKNOWN, Finding

SITES = "a site's address"


def of_address(place: Place) -> Iterator[Finding]:
    """What an address that sites reach answers: TLS, certificates, and which APIs."""
    yield tls.encryption(place)
    place = as_spoken(place)
    if place.tls:
        yield tls.old_versions(place)
        yield tls.vouched(place)
        yield tls.served_lifetime(place, datetime.now(UTC))
        yield tls.client_certificate(place)
    yield from of_apis(place, SITES)
    yield clocks.skew(place)


def of_apis(place: Place, seen_from: str) -> Iterator[Finding]:
    """Which of Flower's APIs answer that should not, seen from there."""
    yield apis.control(place, seen_from)
    yield apis.runtime(place, seen_from)
    yield apis.isolation(place, seen_from)
    yield apis.described(place, seen_from)
    yield apis.registration(place)


def of_superlink(port: int) -> Iterator[Finding]:
    """The SuperLink that serves a port of this machine: its flags, its addresses, its user."""
    process = processes.listening(port)
    if process is None:
        told = "none that this user may look at"
        close = "ask on the server's machine, as its service's user or as root"
        yield Finding("flags of the SuperLink", UNKNOWN, f"the process that serves port {port}", told, close)
        return
    yield from processes.superlink_flags(process)
    yield processes.bound(process, port)


def of_database(path: Path) -> Iterator[Finding]:
    """Flower's database: who may read it, how large it is, what room is left."""
    yield from modes.database(path)
    yield from disk.database_size(path)
    yield disk.room(path.parent, "the database")


def as_spoken(place: Place) -> Place:
    """The place, in plain text where it does not speak TLS."""
    try:
        return place if tls.speaks(place) else replace(place, tls=False, identity=None)
    except Unreachable:
        return place
