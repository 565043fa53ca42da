"""Flower's ClientApp: message -> protocol -> worker -> reply. Nothing is computed here.

In a simulation any node serves any silo, and the message says which. In a deployment the SuperNode's
`--node-config` names its silo ("silo", "data" for the path of its rows, and "state" for a folder in which it
keeps the tensors that `lora.private` never sends), and it serves no other.
"""

from __future__ import annotations

import logging
from collections.abc import Callable, Iterable, Mapping
from dataclasses import dataclass
from importlib.metadata import PackageNotFoundError, version
from pathlib import Path

from flwr.app import ArrayRecord, Context, Message, RecordDict
from flwr.clientapp import ClientApp

from fedmerge.adapters import Adapter, Lora
from fedmerge.config import Config, read_config
from fedmerge.errors import ConfigError, FedMergeError, WireError
from fedmerge.rules.statistics import STATISTICS
from fedmerge.silo.credentials import Credentials
from fedmerge.silo.data import SiloData, load_own, load_silos
from fedmerge.silo.order import Order
from fedmerge.silo.private import PrivateStates
from fedmerge.silo.worker import Worker
from fedmerge.wire.protocol import (
    RECEIVED,
    Card,
    Instruction,
    QueryReply,
    Sender,
    failure_content,
    read_candidates,
    read_instruction,
    reply_content,
)
from fedmerge.wire.records import from_record

logger = logging.getLogger(__name__)

# Versions that can change bits: told to the server, which writes them down.
REPORTED = ("fedmerge", "flwr", "torch", "transformers", "peft")
OWN_SILO = "silo"  # the node-config key that makes a node one silo
OWN_SITE = "site"  # the node-config key of the site's own file, which may name keys for signatures
OWN_STATE = "state"  # the node-config key of the folder in which it keeps private tensors

app = ClientApp()


@app.query()
def query(message: Message, context: Context) -> Message:
    """Which silos this node serves, on which base and device."""
    return _answer(message, context, _describe)


@app.train()
def train(message: Message, context: Context) -> Message:
    """Score the broadcast, train from it, and reply with the delta."""
    return _answer(message, context, _train)


@app.evaluate()
def evaluate(message: Message, context: Context) -> Message:
    """Score every adapter of the message."""
    return _answer(message, context, _evaluate)


@dataclass(frozen=True)
class Station:
    """A worker, and what it was made from.

    Args:
        config: the run's.
        worker: with the base and the rows.
        examples: training rows of each silo that it serves; of one silo, in a deployment.
        shared: whether any node serves any silo: true in simulations only.
    """

    config: Config
    worker: Worker
    examples: Mapping[str, int]
    shared: bool

    def order(self, instruction: Instruction) -> Order:
        """The work that a message asks for.

        Raises:
            ConfigError: the server's base is another one, or a deployed silo is to train a baseline, or to
                remember something of a run without a name.
        """
        expected, found = instruction.fingerprint, self.worker.fingerprint
        if expected not in ("", found):
            raise ConfigError(f"the base here has the fingerprint {found[:16]}, the server's {expected[:16]}")
        if self.config.silo.lora.private and not self.shared and (instruction.stream or not instruction.run):
            raise ConfigError("a deployed silo with lora.private trains in rounds of a run that has a name")
        return Order(
            silo=instruction.silo or ("" if self.shared else next(iter(self.examples))),
            round=instruction.round,
            seed=instruction.seed,
            epochs=instruction.epochs,
            steps=instruction.steps,
            stream=instruction.stream,
            splits=instruction.splits,
            rows=instruction.rows,
            labels=instruction.labels,
            deadline_seconds=instruction.deadline_seconds,
            statistics=instruction.statistics,
            run=instruction.run,
            head=instruction.head,
            outcomes=instruction.outcomes and self.shared,  # rows are a silo's own in a deployment
        )

    def adapter(self, record: ArrayRecord) -> Adapter:
        """What a record holds, with the run's LoRA settings."""
        lora = self.config.silo.lora
        return Adapter(from_record(record), Lora(lora.rank, lora.alpha, lora.rslora))

    def sender(self, order: Order) -> Sender:
        """Who answers."""
        worker = self.worker
        return Sender(order.silo, order.round, worker.fingerprint, worker.device, worker.gpu_seen)


# One worker a process: the base is loaded once. Another configuration takes its place.
_stations: dict[tuple[object, ...], Station] = {}


def station(context: Context) -> Station:
    """The worker of this process, made anew where the configuration is another one."""
    own = {
        key: context.node_config[key] for key in (OWN_SILO, "data", OWN_STATE) if key in context.node_config
    }
    key = (tuple(sorted(context.run_config.items())), tuple(sorted(own.items())))
    if key not in _stations:
        _stations.clear()
        _stations[key] = _open(read_config(context.run_config), own)
    return _stations[key]


def _open(config: Config, own: Mapping[str, str | int | float | bool]) -> Station:
    shared = OWN_SILO not in own
    silos = load_silos(config.silo.data) if shared else _named(load_own(config.silo.data, own))
    examples = {name: len(data.train) for name, data in silos.items()}
    return Station(config, Worker(config.silo, silos, _states(config, own)), examples, shared)


def _states(config: Config, own: Mapping[str, str | int | float | bool]) -> PrivateStates | None:
    """Where silos keep private tensors: in a simulation below the run's folder, else where the node says."""
    if not config.silo.lora.private:
        return None
    if OWN_SILO not in own:
        return PrivateStates(private_folder(config))
    folder = Path(str(own.get(OWN_STATE, "")).strip()).expanduser()
    if not folder.is_absolute() or not folder.is_dir():
        raise ConfigError(
            f"lora.private = {config.silo.lora.private!r}: this silo needs a folder for what it never sends; "
            f"its node-config has {OWN_STATE} = {str(own.get(OWN_STATE, ''))!r}, expected the absolute path "
            f"of a folder that is there: --node-config '... {OWN_STATE}=\"/srv/state\"'"
        )
    return PrivateStates(folder)


def private_folder(config: Config) -> Path:
    """Where the silos of a simulation keep private tensors."""
    return config.folder / "private"


def _named(data: SiloData) -> dict[str, SiloData]:
    return {data.name: data}


def installed(packages: Iterable[str]) -> dict[str, str]:
    """The versions of packages; "unknown" for one that runs from a clone."""
    versions = {}
    for package in packages:
        try:
            versions[package] = version(package)
        except PackageNotFoundError:
            versions[package] = "unknown"
    return versions


def _answer(message: Message, context: Context, work: Callable[[Station, RecordDict], RecordDict]) -> Message:
    """The reply; where the work raises, one that says so. A traceback stays in this node's log.

    A site with keys looks who asks before it loads anything, and signs whatever it answers.
    """
    credentials = None
    try:
        credentials = _credentials(context)
        if credentials is not None:
            credentials.check(message)
        content = work(station(context), message.content)
    except Exception as err:
        logger.exception("a %s message failed", message.metadata.message_type)
        content = failure_content(_failure(message.content, context, err))
    return Message(credentials.sign(content, message) if credentials else content, reply_to=message)


def _credentials(context: Context) -> Credentials | None:
    """What the site's own file names; None in simulations, and where it names no keys."""
    path = str(context.node_config.get(OWN_SITE, "")).strip()
    return Credentials.of_site(Path(path).expanduser()) if path else None


def _failure(content: RecordDict, context: Context, err: Exception) -> Sender:
    """Who failed, and the class of the error. Its sentence may quote rows: only simulations send it."""
    try:
        instruction = read_instruction(content)
    except WireError:
        instruction = Instruction()
    deployed = bool({OWN_SILO, OWN_SITE} & context.node_config.keys())
    silo = instruction.silo or str(context.node_config.get(OWN_SILO, ""))
    return Sender(
        silo=silo,
        round=instruction.round,
        failure=type(err).__name__,
        sentence="" if deployed else str(err),
        code=str(getattr(err, "code", "")) if isinstance(err, FedMergeError) else "",
    )


def _describe(here: Station, content: RecordDict) -> RecordDict:
    worker = here.worker
    return QueryReply(
        silos=tuple(Card.from_json(card) for card in worker.cards()),
        shared=here.shared,
        fingerprint=worker.fingerprint,
        device=worker.device,
        gpu_seen=worker.gpu_seen,
        versions=installed(REPORTED),
        statistics=tuple(sorted(STATISTICS)),
    ).to_content()


def _train(here: Station, content: RecordDict) -> RecordDict:
    order = here.order(read_instruction(content))
    trained = here.worker.train(here.adapter(read_candidates(content)[RECEIVED]), order)
    return reply_content(
        trained.delta.tensors,
        trained.examples,
        metrics=trained.metrics,
        sender=here.sender(order),
        encoding=here.config.wire.encoding,
        statistics=trained.statistics,
    )


def _evaluate(here: Station, content: RecordDict) -> RecordDict:
    order = here.order(read_instruction(content))
    candidates = {name: here.adapter(record) for name, record in read_candidates(content).items()}
    metrics = here.worker.evaluate(candidates, order)
    return reply_content(None, here.examples[order.silo], metrics=metrics, sender=here.sender(order))
