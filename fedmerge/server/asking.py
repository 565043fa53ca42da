"""Whom a round asks, and how: silos drawn by name, a bounded wait for their nodes, the messages."""

from __future__ import annotations

import math
from collections.abc import Callable, Collection, Mapping, Sequence
from dataclasses import dataclass, field, replace

from flwr.app import ArrayRecord, ConfigRecord, Message, MessageType
from flwr.serverapp import Grid

from fedmerge.errors import RoundFailed
from fedmerge.server.absence import NOT_CONNECTED
from fedmerge.server.returning import Patience, Returns
from fedmerge.server.roster import Roster, wait_for_nodes
from fedmerge.server.sampling import sample
from fedmerge.server.settings import StrategySettings
from fedmerge.wire.protocol import Instruction, instruction_content

SILO_SHARE = 0.9
"""Share of the round's deadline that a silo may compute for; the rest is for the way back."""

SHORTEST_ANSWER_SECONDS = 60.0
"""A node that came anew may take at least so long to say who it is; each is asked once."""


@dataclass(frozen=True)
class Asked:
    """Whom a round asks.

    Args:
        silos: drawn for the round, sorted; the quorum is a share of these.
        nodes: the node that serves each silo; a silo whose node is not connected is left out.
        need: usable replies that the quorum wants.
        absent: why, by silo that is left out.
    """

    silos: tuple[str, ...]
    nodes: dict[str, int]
    need: int
    absent: Mapping[str, str] = field(default_factory=dict)


def quorum_of(count: int, quorum: float) -> int:
    """Usable replies that a round needs, of `count` silos asked: rounded up, at least one.

    Example:
        >>> quorum_of(5, 0.8), quorum_of(5, 0.81), quorum_of(5, 0.01)
        (4, 5, 1)
    """
    return max(1, math.ceil(quorum * count - 1e-9))


@dataclass
class Asker:
    """Draws silos, waits for their nodes, and writes their messages.

    Args:
        settings: fraction, quorum, deadline and wait.
        instruction: what every message asks for, but for round and silo.
        roster: the known silos, and where they are by now; None asks whatever nodes are connected.
        min_nodes: nodes to wait for where there is no roster.
        returns: finds silos that come back as other nodes.
        first: the round that waits for every node, as nodes may only just be coming (back).
    """

    settings: StrategySettings
    instruction: Instruction
    roster: Roster | None = None
    min_nodes: int = 2
    returns: Returns = field(default_factory=Returns)
    first: int = 1

    def choose(self, grid: Grid, round: int) -> Asked:
        """Draw the round's silos, and wait for the nodes that serve them.

        Raises:
            RoundFailed: after `wait_seconds` fewer nodes are connected than quorum or `min_nodes` want.
        """
        if self.roster is None:
            return self._choose_nodes(grid, round)
        return self._choose_silos(grid, self.roster, round)

    def train(
        self,
        asked: Asked,
        arrays: ArrayRecord,
        config: ConfigRecord,
        round: int,
        seconds: float | None = None,
    ) -> list[Message]:
        """A train message for each silo that has a node, in the order of `asked.nodes`.

        A message lives as long as the round.

        Args:
            asked: whom the round asks.
            arrays: the broadcast.
            config: of the user's own.
            round: from 1.
            seconds: until the round is over; None is the whole deadline.
        """
        ttl = self.settings.deadline_seconds if seconds is None else seconds
        orders = [
            replace(
                self.instruction,
                round=round,
                silo=silo if self.roster is not None else "",
                deadline_seconds=SILO_SHARE * ttl,
                asked=len(asked.silos),
            )
            for silo in asked.nodes
        ]
        return [
            Message(instruction_content(arrays, order, also=config), node, MessageType.TRAIN, ttl=ttl)
            for order, node in zip(orders, asked.nodes.values(), strict=True)
        ]

    def await_nodes(self, grid: Grid, silos: Sequence[str], left_seconds: float) -> dict[str, int]:
        """The nodes of those of `silos` that are connected, as soon as one is.

        Nobody's where none came within the settings' wait, or what is left of the round.
        """
        if self.roster is None or left_seconds <= 0:
            return {}
        wait = min(self.settings.wait_seconds, left_seconds)
        connected = self._find(grid, silos, Patience(1, wait, left_seconds))
        return self.roster.assign(silos, connected)  # as it is by now

    def evaluate(self, grid: Grid, arrays: ArrayRecord, config: ConfigRecord, round: int) -> list[Message]:
        """An evaluate message for each connected node."""
        order = replace(self.instruction, round=round, statistics=())
        nodes, ttl = sorted(grid.get_node_ids()), self.settings.deadline_seconds
        return [
            Message(instruction_content(arrays, order, also=config), node, MessageType.EVALUATE, ttl=ttl)
            for node in nodes
        ]

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

    def last_call(self, grid: Grid, absent: Collection[str]) -> Roster:
        """The roster after the last round; waits for nodes that went away since.

        Args:
            grid: reaches the nodes.
            absent: silos that are not waited for.
        """
        assert self.roster is not None  # only a run with a roster ends with scores
        expected = [silo for silo in self.roster.names if silo not in absent]
        if not self.roster.shared:
            self._find(grid, expected, self._patience(len(expected)))
        return self.roster

    def _patience(self, enough: int) -> Patience:
        """As the settings say; a stranger has time to start a process whatever they say."""
        wait = self.settings.wait_seconds
        answer = min(self.settings.deadline_seconds, max(wait, SHORTEST_ANSWER_SECONDS))
        return Patience(enough, wait, answer)

    def _find(self, grid: Grid, silos: Sequence[str], patience: Patience) -> list[int]:
        """Wait until enough of the silos are there, wherever they are now; the connected nodes."""
        assert self.roster is not None
        self.roster, connected = self.returns.find(grid, self.roster, silos, patience)
        return connected

    def _choose_silos(self, grid: Grid, roster: Roster, round: int) -> Asked:
        """Draw from the roster.

        The first round waits for every node; later ones only until the quorum is there, so that a silo that
        has left does not hold up every round.
        """
        settings = self.settings
        silos = sample(roster.names, settings.fraction, seed=self.instruction.seed, round=round)
        need = quorum_of(len(silos), settings.quorum)
        known = len(silos) if roster.shared else len(roster.assign(silos, tuple(roster.homes.values())))
        wanted = max(need, known) if round == self.first else need
        connected = self._find(grid, silos, self._patience(wanted))
        roster = self.roster or roster  # where the silos are by now
        nodes = roster.assign(silos, connected)
        absent = {silo: roster.misfits.get(silo, NOT_CONNECTED) for silo in silos if silo not in nodes}
        if len(nodes) < need:
            raise RoundFailed(
                f"{self._connected(round, connected)} and serve {len(nodes)} of {len(silos)} silos; the "
                f"quorum of {settings.quorum:g} wants {need}. Not there: {_reasons(absent)}. "
                "Nothing was changed"
            )
        return Asked(silos, nodes, need, absent)

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


def _reasons(absent: Mapping[str, str]) -> str:
    return ", ".join(f"{silo} ({why})" for silo, why in sorted(absent.items()))
