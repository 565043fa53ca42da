"""What the federation is compared with: each silo alone, and all rows in one place.

Both can be had in simulations only. They start from the adapter that round 1 received, and train as much as
the federation's rounds do together: a silo alone takes its rounds in one go, the pooled silo sees every row
as often (epochs), or takes as many steps as all silos together (steps).
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
from fedmerge.server_app.errands import Errands
from fedmerge.wire.protocol import Instruction, instruction_content
from fedmerge.wire.records import from_record, to_record
from fedmerge.wire.schema import Schema

logger = logging.getLogger(__name__)

ALONE = "alone"
POOLED = "pooled"


@dataclass(frozen=True)
class Baselines:
    """Trains what a run-config's `run.baselines` names.

    Args:
        config: the run's.
        errands: reach the silos.
        initial: the adapter that round 1 received.
        instruction: round 0, with what all train messages of the run have in common.
    """

    config: Config
    errands: Errands
    initial: Adapter
    instruction: Instruction

    def train(self, first_deltas: Mapping[str, Adapter]) -> dict[str, Adapter]:
        """The baselines' adapters, as "alone/<silo>" and "pooled"; what could not be trained is left out.

        Args:
            first_deltas: of round 1 by silo; where it was the only round, the silos alone train no further.
        """
        orders: dict[str, Instruction] = {}
        adapters: dict[str, Adapter] = {}
        if POOLED in self.config.run.baselines:  # first, as it takes longest
            orders[POOLED] = self._pooled()
        if ALONE in self.config.run.baselines:
            if self.config.run.rounds == 1:
                adapters = {f"{ALONE}/{silo}": self._stepped(delta) for silo, delta in first_deltas.items()}
            else:
                orders |= {silo: self._alone(silo) for silo in self.errands.roster.names}
        return adapters | self._run(orders)

    def _run(self, orders: Mapping[str, Instruction]) -> dict[str, Adapter]:
        broadcast = to_record(self.initial.tensors)
        contents = {silo: instruction_content(broadcast, order) for silo, order in orders.items()}
        timeout = sum(order.deadline_seconds for order in orders.values())  # there may be one node for all
        adapters: dict[str, Adapter] = {}
        for silo, content in self.errands.run(contents, "train", timeout_seconds=timeout):
            try:
                adapters[silo if silo == POOLED else f"{ALONE}/{silo}"] = self._stepped(self._delta(content))
            except WireError as err:
                logger.warning("baseline of %r is left out: %s", silo, err)
        return dict(sorted(adapters.items()))

    def _alone(self, silo: str) -> Instruction:
        rounds = self.config.run.rounds
        return self._scaled(replace(self.instruction, silo=silo, stream=ALONE), rounds, rounds)

    def _pooled(self) -> Instruction:
        rounds, silos = self.config.run.rounds, len(self.errands.roster.names)
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
