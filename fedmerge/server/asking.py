"""Whom a round asks, and how: silos drawn by name, a bounded wait for their nodes, the messages."""

from __future__ import annotations

import math
from collections.abc import Callable, Mapping
from dataclasses import dataclass, replace

from flwr.app import ArrayRecord, ConfigRecord, Message, MessageType
from flwr.serverapp import Grid

from fedmerge.errors import RoundFailed
from fedmerge.server.roster import Roster, wait_for_nodes
from fedmerge.server.sampling import sample
from fedmerge.server.settings import StrategySettings
from fedmerge.wire.protocol import Instruction, instruction_content

SILO_SHARE = 0.9
"""Share of the round's deadline that a silo may compute for; the rest is for the way back."""


@dataclass(frozen=True)
class Asked:
    """Whom a round asks.

    Args:
        silos: drawn for the round, sorted; the quorum is a share of these.
        nodes: the node that serves each silo; a silo whose node is not connected is left out.
        need: usable replies that the quorum wants.
    """

    silos: tuple[str, ...]
    nodes: dict[str, int]
    need: int


def quorum_of(count: int, quorum: float) -> int:
    """Usable replies that a round needs, of `count` silos asked: rounded up, at least one.

    Example:
        >>> quorum_of(5, 0.8), quorum_of(5, 0.81), quorum_of(5, 0.01)
        (4, 5, 1)
    """
    return max(1, math.ceil(quorum * count - 1e-9))


@dataclass(frozen=True)
class Asker:
    """Draws silos, waits for their nodes, and writes their messages.

    Args:
        settings: fraction, quorum, deadline and wait.
        instruction: what every message asks for, but for round and silo.
        roster: the known silos; None asks whatever nodes are connected.
        min_nodes: nodes to wait for where there is no roster.
        first: the round that waits for every node, as nodes may only just be coming (back).
    """

    settings: StrategySettings
    instruction: Instruction
    roster: Roster | None = None
    min_nodes: int = 2
    first: int = 1

    def choose(self, grid: Grid, round: int) -> Asked:
        """Draw the round's silos, and wait for the nodes that serve them.

        Raises:
            RoundFailed: after `wait_seconds` fewer nodes are connected than quorum or `min_nodes` want.
        """
        if self.roster is None:
            return self._choose_nodes(grid, round)
        return self._choose_silos(grid, self.roster, round)

    def train(self, asked: Asked, arrays: ArrayRecord, config: ConfigRecord, round: int) -> list[Message]:
        """A train message for each silo that has a node, in the order of `asked.nodes`."""
        orders = [
            replace(
                self.instruction,
                round=round,
                silo=silo if self.roster is not None else "",
                deadline_seconds=SILO_SHARE * self.settings.deadline_seconds,
                asked=len(asked.silos),
            )
            for silo in asked.nodes
        ]
        return [
            self._message(MessageType.TRAIN, arrays, config, order, node)
            for order, node in zip(orders, asked.nodes.values(), strict=True)
        ]

    def evaluate(self, grid: Grid, arrays: ArrayRecord, config: ConfigRecord, round: int) -> list[Message]:
        """An evaluate message for each connected node."""
        order = replace(self.instruction, round=round, statistics=())
        nodes = sorted(grid.get_node_ids())
        return [self._message(MessageType.EVALUATE, arrays, config, order, node) for node in nodes]

    def probe(
        self,
        homes: Mapping[str, int],
        arrays: ArrayRecord,
        candidates: Mapping[str, ArrayRecord],
        config: ConfigRecord,
        round: int,
    ) -> list[Message]:
        """An evaluate message for each silo: `arrays` and the candidates, on its validation rows.

        Args:
            homes: the node of each silo.
            arrays: the first adapter; its scores come back as "received".
            candidates: further adapters by name.
            config: of the user's own.
            round: whose replies these were made of.
        """
        order = replace(
            self.instruction, round=round, epochs=0, steps=0, splits=("validation",), statistics=()
        )
        ttl = self.settings.deadline_seconds
        return [
            Message(
                instruction_content(
                    arrays,
                    replace(order, silo=silo if self.roster is not None else ""),
                    candidates=candidates,
                    also=config,
                ),
                node,
                MessageType.EVALUATE,
                ttl=ttl,
            )
            for silo, node in homes.items()
        ]

    def _message(
        self, kind: str, arrays: ArrayRecord, config: ConfigRecord, order: Instruction, node: int
    ) -> Message:
        content = instruction_content(arrays, order, also=config)
        return Message(content, node, kind, ttl=self.settings.deadline_seconds)

    def _choose_silos(self, grid: Grid, roster: Roster, round: int) -> Asked:
        """Draw from the roster.

        The first round waits for every node; later ones only until the quorum is there, so that a silo that
        has left does not hold up every round.
        """
        settings = self.settings
        silos = sample(roster.names, settings.fraction, seed=self.instruction.seed, round=round)
        need = quorum_of(len(silos), settings.quorum)
        wanted = len(silos) if round == self.first else need
        connected = self._wait(grid, lambda nodes: len(roster.assign(silos, nodes)) >= wanted)
        nodes = roster.assign(silos, connected)
        if len(nodes) < need:
            absent = ", ".join(silo for silo in silos if silo not in nodes)
            raise RoundFailed(
                f"{self._connected(round, connected)} and serve {len(nodes)} of {len(silos)} silos; the "
                f"quorum of {settings.quorum:g} wants {need}. Not connected: {absent}. Nothing was changed"
            )
        return Asked(silos, nodes, need)

    def _choose_nodes(self, grid: Grid, round: int) -> Asked:
        """Draw from the connected nodes; silos are called "node-<id>" until they say their names."""
        least = max(1, self.min_nodes)
        connected = self._wait(grid, lambda nodes: len(nodes) >= least)
        if len(connected) < least:
            found = self._connected(round, connected)
            raise RoundFailed(f"{found}, expected at least {least}. Nothing was changed")
        names = {f"node-{node}": node for node in connected}
        silos = sample(names, self.settings.fraction, seed=self.instruction.seed, round=round)
        nodes = {silo: names[silo] for silo in silos}
        return Asked(silos, nodes, quorum_of(len(silos), self.settings.quorum))

    def _wait(self, grid: Grid, enough: Callable[[list[int]], bool]) -> list[int]:
        return wait_for_nodes(grid, enough, wait_seconds=self.settings.wait_seconds)

    def _connected(self, round: int, connected: list[int]) -> str:
        seconds = self.settings.wait_seconds
        return f"round {round}: {len(connected)} nodes are connected after {seconds:g} seconds"
