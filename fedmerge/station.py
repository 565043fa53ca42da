"""What stands behind a ClientApp's messages: the run's settings, a silo's rows, and a worker with the base.

Importing this loads torch, and using the worker loads transformers: `fedmerge.client_app` does either only
where an error can't leave the node any more.
"""

from __future__ import annotations

import dataclasses
from collections.abc import Mapping
from dataclasses import dataclass
from functools import cached_property
from pathlib import Path
from typing import TYPE_CHECKING

import torch
from flwr.app import ArrayRecord, RecordDict

from fedmerge.adapters import Adapter, Lora
from fedmerge.client_app import installed
from fedmerge.config import Config
from fedmerge.errors import ConfigError
from fedmerge.rules.statistics import STATISTICS
from fedmerge.silo.base_files import check_fingerprint
from fedmerge.silo.data import SiloData, load_own, load_silos
from fedmerge.silo.device import pick_device
from fedmerge.silo.introduction import card
from fedmerge.silo.lateness import Lifetime
from fedmerge.silo.order import Order
from fedmerge.silo.policy import columns_read
from fedmerge.silo.private import PrivateStates
from fedmerge.silo.site import Site
from fedmerge.wire.protocol import (
    RECEIVED,
    Card,
    Instruction,
    QueryReply,
    Sender,
    read_candidates,
    read_instruction,
    reply_content,
)
from fedmerge.wire.records import from_record

if TYPE_CHECKING:
    from fedmerge.silo.worker import Worker

# Versions that can change bits: told to the server, which writes them down.
REPORTED = ("fedmerge", "flwr", "torch", "transformers", "peft")


@dataclass(frozen=True)
class Station:
    """Settings and rows of the silos that this node serves, and their worker.

    Args:
        config: the run's, with what the site has of its own.
        silos: their rows; one silo's, in a deployment.
        site: what a deployed node is; None in a simulation, where any node serves any silo.
    """

    config: Config
    silos: Mapping[str, SiloData]
    site: Site | None = None

    @property
    def shared(self) -> bool:
        """Whether any node serves any silo: in simulations only."""
        return self.site is None

    @cached_property
    def examples(self) -> dict[str, int]:
        """Training rows of each silo."""
        return {name: len(data.train) for name, data in self.silos.items()}

    @cached_property
    def worker(self) -> Worker:
        """Trains and scores; it loads the base when it is first asked to."""
        from fedmerge.silo.worker import Worker  # noqa: PLC0415  loads transformers: seconds that a query saves

        worker = Worker(self.config.silo, self.silos, _states(self.config, self.site))
        worker.fingerprint = self.fingerprint
        return worker

    @cached_property
    def fingerprint(self) -> str:
        """Of the base, which need not be loaded for it.

        Raises:
            ConfigError: it isn't the configured one.
            PolicyError: the site does not allow this base.
        """
        state = self.site.state if self.site is not None else None
        notes = (
            state / "fingerprints" if state is not None and state.is_absolute() and state.is_dir() else None
        )
        found = check_fingerprint(self.config.silo.base, notes)
        if self.site is not None:
            self.site.policy.check_base(found)
        return found

    def order(self, instruction: Instruction, lifetime: Lifetime | None = None) -> Order:
        """The work that a message asks for; the base is not loaded yet.

        Args:
            instruction: of the message.
            lifetime: of the message; what is left of it bounds the work. None takes the deadline as it is.

        Raises:
            ConfigError: the server's base is another one, or a deployed silo is to train a baseline, or to
                remember something of a run without a name.
            PolicyError: the site does not allow it, or the message is too old.
        """
        if self.site is not None:
            steps, round = instruction.steps, instruction.round
            self.site.policy.check_order(round=round, steps=steps, asked=instruction.asked)
        expected, found = instruction.fingerprint, self.fingerprint
        if expected not in ("", found):
            raise ConfigError(f"the base here has the fingerprint {found[:16]}, the server's {expected[:16]}")
        if self.config.silo.lora.private and not self.shared and (instruction.stream or not instruction.run):
            raise ConfigError("a deployed silo with lora.private trains in rounds of a run that has a name")
        if not self.shared and "train" in instruction.splits:
            raise ConfigError(
                "a deployed silo gives no scores of its training rows: they tell who was among them"
            )
        seconds = instruction.deadline_seconds
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
            deadline_seconds=seconds if lifetime is None else lifetime.left(seconds),
            statistics=instruction.statistics,
            run=instruction.run,
            head=instruction.head,
            outcomes=instruction.outcomes and self.shared,  # rows are a silo's own in a deployment
            max_steps=self.site.policy.max_steps or 0 if self.site is not None else 0,
        )

    def adapter(self, record: ArrayRecord) -> Adapter:
        """What a record holds, with the run's LoRA settings."""
        lora = self.config.silo.lora
        return Adapter(from_record(record), Lora(lora.rank, lora.alpha, lora.rslora))

    def sender(self, order: Order) -> Sender:
        """Who answers."""
        worker = self.worker
        return Sender(order.silo, order.round, worker.fingerprint, worker.device, worker.gpu_seen)


def opened(config: Config, site: Site | None) -> Station:
    """A station, its rows read.

    Raises:
        ConfigError: the rows, or what the site says, can't be used.
        PolicyError: the site does not allow this run; nothing was read then.
    """
    if site is None:
        return Station(config, load_silos(config.silo.data))
    site.policy.check_run(
        task=config.silo.task.kind,
        columns=columns_read(config.silo),
        encoding=config.wire.encoding,
        rounds=config.run.rounds,
    )
    base = dataclasses.replace(config.silo.base, model=site.base or config.silo.base.model)
    config = dataclasses.replace(config, silo=dataclasses.replace(config.silo, base=base))
    silos: dict[str, SiloData] = {}
    station = Station(config, silos, site)
    _states(config, site)
    _ = station.fingerprint  # refused, if need be, before rows are read
    own = load_own(config.silo.data, {"silo": site.silo, "data": site.data})
    silos[own.name] = own
    return station


def describe(here: Station, content: RecordDict, lifetime: Lifetime) -> RecordDict:
    """The reply to a query: which silos this node serves, on which base and device."""
    lifetime.left(0.0)
    column = here.config.silo.data.label
    if here.site is not None and not here.site.policy.may_tell(column):
        column = ""
    return QueryReply(
        silos=tuple(Card.from_json(card(here.silos[name], column)) for name in sorted(here.silos)),
        shared=here.shared,
        fingerprint=here.fingerprint,
        device=pick_device(here.config.silo.train.device).type,
        gpu_seen=torch.cuda.is_available(),
        versions=installed(REPORTED),
        statistics=tuple(sorted(STATISTICS)),
    ).to_content()


def train(here: Station, content: RecordDict, lifetime: Lifetime) -> RecordDict:
    """The reply to a train message: the broadcast's scores, and the delta that training from it made."""
    order = here.order(read_instruction(content), None if here.shared else lifetime)
    trained = here.worker.train(here.adapter(read_candidates(content)[RECEIVED]), order)
    return reply_content(
        trained.delta.tensors,
        trained.examples,
        metrics=trained.metrics,
        sender=here.sender(order),
        encoding=here.config.wire.encoding,
        statistics=trained.statistics,
    )


def evaluate(here: Station, content: RecordDict, lifetime: Lifetime) -> RecordDict:
    """The reply to an evaluate message: scores of every adapter in it."""
    order = here.order(read_instruction(content), None if here.shared else lifetime)
    candidates = {name: here.adapter(record) for name, record in read_candidates(content).items()}
    metrics = here.worker.evaluate(candidates, order)
    return reply_content(None, here.examples[order.silo], metrics=metrics, sender=here.sender(order))


def private_folder(config: Config) -> Path:
    """Where the silos of a simulation keep private tensors."""
    return config.folder / "private"


def _states(config: Config, site: Site | None) -> PrivateStates | None:
    """Where silos keep private tensors: in a simulation below the run's folder, else where the site says."""
    if not config.silo.lora.private:
        return None
    if site is None:
        return PrivateStates(private_folder(config))
    folder = (site.state or Path()).expanduser()
    if not folder.is_absolute() or not folder.is_dir():
        raise ConfigError(
            f"lora.private = {config.silo.lora.private!r}: this silo needs a folder for what it never sends; "
            f"its state is {str(site.state or '')!r}, expected the absolute path of a folder that is there: "
            "state in site.toml, or --node-config '... state=\"/srv/state\"'"
        )
    return PrivateStates(folder)
