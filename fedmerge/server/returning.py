"""Silos that come back: under another node id, or for the first time though the run named them.

A registered node keeps its id when it restarts, since Flower finds it by its key; one without a key, or with
a new key, gets another. Before a round goes on without a silo, connected nodes that nobody knows are asked
who they are. Nobody who was neither named nor there at the start is taken in.
"""

from __future__ import annotations

import logging
import time
from collections.abc import Collection, Iterable, Sequence
from dataclasses import dataclass, field, replace

from flwr.serverapp import Grid

from fedmerge.errors import RoundFailed
from fedmerge.server.membership import Membership, judge
from fedmerge.server.roster import Roster, ask, wait_for_nodes

logger = logging.getLogger(__name__)

QUERY_SECONDS = 600.0
"""The longest that a node may take to say who it is: it imports torch, and loads its base and its rows."""

Visit = tuple[int, str]
"""A node, and when it last came; a node that restarts comes anew under the same id."""


@dataclass(frozen=True)
class Patience:
    """How long silos are looked for.

    Args:
        enough: silos; whoever else is there by then comes along.
        wait_seconds: until so many are connected.
        answer_seconds: that a stranger may take to say who it is; the wait may end later by as much.
    """

    enough: int
    wait_seconds: float
    answer_seconds: float


@dataclass
class Returns:
    """Learns where the silos of a roster are now.

    Args:
        membership: what a silo must bring along; of the names, those of the roster count.
        judged: the visits that were asked already.
    """

    membership: Membership = field(default_factory=Membership)
    judged: set[Visit] = field(default_factory=set)

    def find(
        self, grid: Grid, roster: Roster, silos: Sequence[str], patience: Patience
    ) -> tuple[Roster, list[int]]:
        """Wait until enough silos are connected; strangers are asked who they are where one is not.

        Returns:
            The roster with the silos at the nodes where they are now, and the connected nodes.
        """
        end, met = time.monotonic() + patience.wait_seconds, False

        def settled(nodes: list[int]) -> bool:
            there = len(roster.assign(silos, nodes))
            return there >= patience.enough or bool(self.strangers(grid, roster, nodes))

        while True:
            nodes = wait_for_nodes(grid, settled, wait_seconds=max(0.0, end - time.monotonic()))
            all_there = len(roster.assign(silos, nodes)) == len(silos)
            strangers = set() if all_there else self.strangers(grid, roster, nodes)
            if not strangers or (met and time.monotonic() >= end):
                return roster, nodes
            met = True
            roster = self.meet(grid, roster, strangers, wait_seconds=patience.answer_seconds)

    def strangers(self, grid: Grid, roster: Roster, nodes: Collection[int]) -> set[Visit]:
        """The connected nodes that are no silo's home, as far as they were not asked since they came."""
        if roster.shared or set(roster.homes.values()).issuperset(nodes):
            return set()
        came = _visits(grid)
        strangers = set(nodes) - set(roster.homes.values())
        return {(node, came.get(node, "")) for node in strangers} - self.judged

    def meet(self, grid: Grid, roster: Roster, visits: Iterable[Visit], *, wait_seconds: float) -> Roster:
        """Ask strangers who they are.

        Args:
            grid: reaches them.
            roster: as it is known.
            visits: whom to ask.
            wait_seconds: for their answers.

        Returns:
            The roster with the homes of those that belong to it, and why the others don't. A silo whose home
            is connected is not moved: whoever else takes its name is refused.
        """
        visits = set(visits)
        self.judged |= visits
        try:
            answers = ask(
                grid, [node for node, _ in visits], timeout_seconds=min(wait_seconds, QUERY_SECONDS)
            )
        except RoundFailed as problem:
            logger.warning("%s", problem)
            return roster
        terms = replace(self.membership, names=frozenset(roster.names))
        found = judge(answers, terms)
        connected = set(grid.get_node_ids())
        homes = {}
        for silo, node in found.homes.items():
            if roster.homes.get(silo) in connected:
                logger.warning("node %d is left out: %r is connected already, as another node", node, silo)
            else:
                homes[silo] = node
                logger.info("silo %r is at node %d now", silo, node)
        return roster.moved([found.cards[silo] for silo in homes], homes, found.misfits)


def _visits(grid: Grid) -> dict[int, str]:
    """When each connected node last came; nothing where the grid does not tell."""
    return {node.node_id: str(getattr(node, "last_activated_at", "")) for node in grid.get_nodes()}
