"""Flower's ClientApp: message -> station -> reply. Nothing is computed here, and nothing unsaid leaves.

In a simulation any node serves any silo, and the message says which. In a deployment the SuperNode's
`--node-config` names its site (`fedmerge.silo.site`), and it serves no other silo.

Flower sends the text of an exception that escapes a ClientApp to the server, word for word, also of one that
is raised while this is imported. So next to nothing is imported here, and all work is done where an error
ends in a reply.
"""

from __future__ import annotations

import logging
import os
import time
from collections.abc import Iterable
from contextlib import suppress
from importlib import import_module
from importlib.metadata import PackageNotFoundError, version
from typing import TYPE_CHECKING

from flwr.app import ConfigRecord, Context, Message, MetricRecord, RecordDict
from flwr.clientapp import ClientApp

from fedmerge import logs
from fedmerge.errors import ConfigError, FedMergeError
from fedmerge.wire.packing import is_packed, pack, unpack

if TYPE_CHECKING:
    from pathlib import Path

    from fedmerge.silo.credentials import Credentials
    from fedmerge.silo.site import Site
    from fedmerge.station import Station

logger = logging.getLogger(__name__)

# What makes the libraries below leave the network alone; they read it when they are first imported.
_OFFLINE = ("HF_HUB_OFFLINE", "HF_DATASETS_OFFLINE", "HF_HUB_DISABLE_TELEMETRY")

app = ClientApp()


class _Standing:
    """Whether this process may take part in a simulation; a node of a deployment's own process may not."""

    sites_only = False


def go_offline() -> None:
    """Have what is imported from here on leave the network alone, here and in processes started from here."""
    os.environ.update(dict.fromkeys(_OFFLINE, "1"))


def serve_sites_only() -> None:
    """From here on refuse where the node's configuration names no site, instead of simulating one."""
    _Standing.sites_only = True


@app.query()
def query(message: Message, context: Context) -> Message:
    """Which silos this node serves, on which base and device."""
    return _answer(message, context, "describe")


@app.train()
def train(message: Message, context: Context) -> Message:
    """Score the broadcast, train from it, and reply with the delta."""
    return _answer(message, context, "train")


@app.evaluate()
def evaluate(message: Message, context: Context) -> Message:
    """Score every adapter of the message."""
    return _answer(message, context, "evaluate")


# One station a process: the base is loaded once. Another configuration takes its place.
_stations: dict[tuple[object, ...], Station] = {}


def station(context: Context, site: Site | None = None) -> Station:
    """The station of this process, made anew where the configuration is another one.

    Args:
        context: Flower's.
        site: of the node; None reads it.
    """
    from fedmerge.config import read_config  # noqa: PLC0415  here and below: see above
    from fedmerge.silo.site import site_of  # noqa: PLC0415
    from fedmerge.station import opened  # noqa: PLC0415

    site = site or site_of(context.node_config)
    key = (tuple(sorted(context.run_config.items())), site)
    if key not in _stations:
        _stations.clear()
        _stations[key] = opened(read_config(context.run_config), site)
    return _stations[key]


def installed(packages: Iterable[str]) -> dict[str, str]:
    """The versions of packages; "unknown" for one that runs from a clone."""
    versions = {}
    for package in packages:
        try:
            versions[package] = version(package)
        except PackageNotFoundError:
            versions[package] = "unknown"
    return versions


def _answer(message: Message, context: Context, work: str) -> Message:
    """The reply; where the work raises, one that says so. A traceback stays in this node's log."""
    began, site, problem = time.monotonic(), None, None
    packed = is_packed(message.content)
    try:
        site = _site(message, context)
        content = _worked(message, context, site, work)
    except (KeyboardInterrupt, SystemExit):  # the process is told to end: no text leaves with these
        raise
    except BaseException as err:  # a panic of a Rust library is no Exception
        problem = err
        logger.exception("a %s message failed", message.metadata.message_type)
        content = _failure(message, context, site, err)
    if site is not None:
        content = _departing(message, context, site, content, problem)
        logger.info("%s answered in %.1f s", message.metadata.message_type, time.monotonic() - began)
    return Message(pack(content) if packed else content, reply_to=message)


def _site(message: Message, context: Context) -> Site | None:
    """What a deployed node is; from here on its log says so."""
    from fedmerge.silo.site import CODE, site_of  # noqa: PLC0415

    site = site_of(context.node_config)
    if site is None and _Standing.sites_only:
        raise ConfigError("this node's configuration names no site: --node-config \"site='/...'\"", code=CODE)
    if site is not None:
        logs.configure(f"silo {site.silo}", run=str(message.metadata.run_id))
        logs.note(round=_round(message))
        if not site.network:
            go_offline()
    return site


def _worked(message: Message, context: Context, site: Site | None, work: str) -> RecordDict:
    from fedmerge.silo.lateness import Lifetime  # noqa: PLC0415

    unpack(message.content)
    metadata = message.metadata
    lifetime = Lifetime(metadata.created_at, metadata.ttl, time.time())
    if site is not None:
        lifetime.left(0.0)  # nobody waits for it: answered before anything is loaded
        if site.signing_key is not None:
            _credentials(site, site.signing_key).check(message)
    do = getattr(import_module("fedmerge.station"), work)
    content: RecordDict = do(station(context, site), message.content, lifetime)
    return content


def _round(message: Message) -> int:
    """The round that a message belongs to, as far as it says so."""
    config = message.content.get("config")
    round = config.get("round", 0) if isinstance(config, ConfigRecord) else 0
    return round if isinstance(round, int) else 0


def _failure(message: Message, context: Context, site: Site | None, err: BaseException) -> RecordDict:
    """A reply that says who failed, and the class and code of the error: made of Flower's own parts alone.

    Its sentence may quote rows: only simulations send it.
    """
    deployed = site or _Standing.sites_only or {"site", "silo"} & context.node_config.keys()
    config = message.content.get("config")
    asked = config.get("silo", "") if isinstance(config, ConfigRecord) else ""
    silo = str(asked) or (site.silo if site is not None else str(context.node_config.get("silo", "")))
    record = ConfigRecord({"silo": silo, "round": _round(message), "fingerprint": "", "device": ""})
    record["gpu-seen"], record["failure"] = False, type(err).__name__
    record["sentence"] = "" if deployed else str(err)
    if isinstance(err, FedMergeError) and err.code:
        record["code"] = err.code
    return RecordDict({"metrics": MetricRecord({"num-examples": 0}), "fedmerge": record})


def _departing(
    message: Message, context: Context, site: Site, content: RecordDict, problem: BaseException | None
) -> RecordDict:
    """The reply, signed, once the site's log says what it is; without that a refusal alone."""
    try:
        from fedmerge.silo.departures import Departure, write  # noqa: PLC0415

        content = _signed(message, site, content)
        if site.log is not None:
            write(site.log, Departure(site.silo, site.federation, message, content, problem))
    except Exception as err:
        logger.exception("nothing leaves")
        content = _failure(message, context, site, err)
        with suppress(Exception):
            content = _signed(message, site, content)
    return content


def _signed(message: Message, site: Site, content: RecordDict) -> RecordDict:
    """The content of a reply, signed where the site has a key."""
    return (
        content if site.signing_key is None else _credentials(site, site.signing_key).sign(content, message)
    )


def _credentials(site: Site, signing_key: Path) -> Credentials:
    from fedmerge.silo.credentials import Credentials  # noqa: PLC0415

    return Credentials.load(site.federation, site.silo, signing_key, site.server_key)
