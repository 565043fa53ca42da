"""What the federation is compared with: each silo alone, all rows in one place, and class means.

They can be had in simulations only. The centroids train nothing: the base as it is, under class means of all
silos' training rows. The others start from the adapter that round 1 received, and train as much as
a silo that takes part in every round: a silo alone takes its rounds in one go, the pooled silo sees every
row as often (epochs), or takes as many steps as all silos together (steps).
"""

from __future__ import annotations

import logging
from collections.abc import Mapping
from dataclasses import dataclass, replace

from flwr.app import RecordDict

from fedmerge.adapters import Adapter
from fedmerge.config import Config
from fedmerge.errors import WireError
from fedmerge.server.reading import arrays_of
from fedmerge.server_app.errands import Errand
from fedmerge.server_app.scoring import CENTROIDS
from fedmerge.wire.protocol import Instruction, instruction_content
from fedmerge.wire.records import from_record, to_record
from fedmerge.wire.schema import Schema

logger = logging.getLogger(__name__)

ALONE = "alone"
POOLED = "pooled"


@dataclass(frozen=True)
class Baselines:
    """What a run-config's `run.baselines` names.

    Args:
        config: the run's.
        silos: their names.
        names: the baselines that are wanted.
        initial: the whole adapter that round 1 started from.
        instruction: round 0, with what all train messages of the run have in common.
    """

    config: Config
    silos: tuple[str, ...]
    names: tuple[str, ...]
    initial: Adapter
    instruction: Instruction

    def known(self, first_deltas: Mapping[str, Adapter]) -> dict[str, Adapter]:
        """What needs no further training: centroids, and the silos alone where round 1 was the only round.

        What a silo keeps to itself is in no delta: then there are none.

        Args:
            first_deltas: of round 1 by silo.
        """
        reference = {CENTROIDS: self.initial} if CENTROIDS in self.names else {}
        if ALONE not in self.names or self._trained_apart:
            return reference
        return reference | {f"{ALONE}/{silo}": self._stepped(delta) for silo, delta in first_deltas.items()}

    def errands(self) -> dict[str, Errand]:
        """What is still to be trained, by the adapter's name; the pooled one first, as it takes longest."""
        broadcast = to_record(self.initial.tensors)
        return {
            name: Errand(order.silo, "train", instruction_content(broadcast, order))
            for name, order in self._orders().items()
        }

    @property
    def seconds(self) -> float:
        """The longest that all of them may train: there may be one node for all."""
        return sum(order.deadline_seconds for order in self._orders().values())

    def read(self, name: str, content: RecordDict) -> dict[str, Adapter]:
        """The adapter that a silo trained, by its name; none, with a warning, where the reply is unfit."""
        try:
            return {name: self._stepped(self._delta(content))}
        except WireError as err:
            logger.warning("baseline %r is left out: %s", name, err)
            return {}

    @property
    def _trained_apart(self) -> bool:
        """Whether no round's deltas are those of the silos alone."""
        return self.config.run.rounds > 1 or bool(self.config.silo.lora.private)

    def _orders(self) -> dict[str, Instruction]:
        orders = {POOLED: self._pooled()} if POOLED in self.names else {}
        if ALONE in self.names and self._trained_apart:
            orders |= {f"{ALONE}/{silo}": self._alone(silo) for silo in self.silos}
        return orders

    def _alone(self, silo: str) -> Instruction:
        rounds = self.config.run.rounds
        return self._scaled(replace(self.instruction, silo=silo, stream=ALONE), rounds, rounds)

    def _pooled(self) -> Instruction:
        rounds, silos = self.config.run.rounds, len(self.silos)
        order = replace(self.instruction, silo=POOLED, stream=POOLED)
        return self._scaled(order, rounds, rounds * silos)

    def _scaled(self, order: Instruction, epochs: int, steps: int) -> Instruction:
        return replace(
            order,
            epochs=order.epochs * epochs,
            steps=order.steps * steps,
            deadline_seconds=order.deadline_seconds * steps,
        )

    def _delta(self, content: RecordDict) -> Adapter:
        schema = Schema.of(self.initial.tensors, self.config.wire.encoding)
        return Adapter(from_record(arrays_of(content), schema), self.initial.lora)

    def _stepped(self, delta: Adapter) -> Adapter:
        initial = self.initial.tensors
        tensors = {name: value + delta.tensors[name].to(value.dtype) for name, value in initial.items()}
        return replace(self.initial, tensors=tensors)
