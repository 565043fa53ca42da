"""The known silos, and which node serves which of them.

In a deployment a node is a silo. In a simulation every node can serve every silo (`shared`), so that messages
address silos and nodes merely execute: two nodes are enough for a hundred silos.
"""

from __future__ import annotations

import logging
import time
from collections import Counter
from collections.abc import Callable, Collection, Iterable, Mapping, Sequence
from dataclasses import dataclass, field

from flwr.app import Message, MessageType, RecordDict
from flwr.serverapp import Grid

from fedmerge.errors import ConfigError, RoundFailed, WireError
from fedmerge.wire.protocol import Card, QueryReply
from fedmerge.wire.schema import shown

logger = logging.getLogger(__name__)

GPU_REMEDY = '--federation-config "client-resources-num-gpus=0.25"'


@dataclass(frozen=True)
class Roster:
    """The known silos.

    Args:
        cards: what each silo told about its data, sorted by name.
        homes: the node of each silo; empty where nodes are shared.
        shared: whether any node serves any silo.
        fingerprint: of the base that all nodes have; "" where they did not say.
        caps: the most training rows that a silo may count as, for each that has a cap.
    """

    cards: tuple[Card, ...]
    homes: Mapping[str, int] = field(default_factory=dict)
    shared: bool = False
    fingerprint: str = ""
    caps: Mapping[str, int] = field(default_factory=dict)

    @property
    def names(self) -> tuple[str, ...]:
        """The silos, sorted."""
        return tuple(card.name for card in self.cards)

    def assign(self, silos: Sequence[str], nodes: Collection[int]) -> dict[str, int]:
        """The node that serves each silo; a silo whose node is not among `nodes` is left out.

        Example:
            >>> roster = Roster((Card("a", 1), Card("b", 1), Card("c", 1)), shared=True)
            >>> roster.assign(["a", "b", "c"], nodes=[7, 3])
            {'a': 3, 'b': 7, 'c': 3}
        """
        if not self.shared:
            return {silo: self.homes[silo] for silo in silos if self.homes.get(silo) in nodes}
        ordered = sorted(nodes)
        return {silo: ordered[index % len(ordered)] for index, silo in enumerate(silos)} if ordered else {}

    @classmethod
    def of(cls, replies: Mapping[int, QueryReply]) -> Roster:
        """The roster that the nodes' answers make, by node id.

        Raises:
            ConfigError: no silo at all, two nodes with a silo of the same name, nodes with other bases, or
                nodes that contradict each other about the simulation.
        """
        if not replies or not any(reply.silos for reply in replies.values()):
            raise ConfigError(
                f"{len(replies)} nodes answered, and none of them has a silo; check data.source"
            )
        fingerprint = _same_base(replies)
        if len({reply.shared for reply in replies.values()}) > 1:
            raise ConfigError("some nodes serve every silo (simulation), others their own (deployment)")
        first = replies[min(replies)]
        if first.shared:
            if any(_sorted(reply) != _sorted(first) for reply in replies.values()):
                raise ConfigError(
                    "the nodes of the simulation see different silos; is data.source the same for all?"
                )
            homes: dict[str, int] = {}
        else:
            homes = _homes(replies)
        cards = first.silos if first.shared else [card for reply in replies.values() for card in reply.silos]
        _refuse_twice([card.name for card in cards])
        return cls(tuple(sorted(cards, key=lambda card: card.name)), homes, first.shared, fingerprint)


def _sorted(reply: QueryReply) -> list[Card]:
    return sorted(reply.silos, key=lambda card: card.name)


def _homes(replies: Mapping[int, QueryReply]) -> dict[str, int]:
    return {card.name: node for node, reply in replies.items() for card in reply.silos}


def _refuse_twice(names: Iterable[str]) -> None:
    """Refuse a name that two silos have: their replies could not be told apart."""
    twice = sorted(name for name, count in Counter(names).items() if count > 1)
    if twice:
        listed = ", ".join(shown(name) for name in twice)
        raise ConfigError(
            f"more than one silo is called {listed}; give each node its own --node-config \"silo='...'\""
        )


def _same_base(replies: Mapping[int, QueryReply]) -> str:
    """The one fingerprint of all nodes."""
    bases = Counter(reply.fingerprint for reply in replies.values())
    if len(bases) > 1:
        usual = bases.most_common(1)[0][0]
        odd = [card.name for reply in replies.values() if reply.fingerprint != usual for card in reply.silos]
        listed = ", ".join(shown(name) for name in sorted(odd)[:5])
        raise ConfigError(
            f"the silos have different bases: that of {listed} is not the others'; check base.model"
        )
    return next(iter(bases))


def ask(grid: Grid, nodes: Iterable[int], *, timeout_seconds: float) -> dict[int, QueryReply]:
    """Ask each node who it is.

    Nodes that fail are logged and left out; a node's sentence, where it gives one, stands in the log.

    Returns:
        The answers by node id, sorted.

    Raises:
        RoundFailed: no node answered; the message carries what they said instead.
    """
    messages = [Message(RecordDict(), node, MessageType.QUERY, ttl=timeout_seconds) for node in sorted(nodes)]
    answers: dict[int, QueryReply] = {}
    problems: list[str] = []
    for reply in grid.send_and_receive(messages, timeout=timeout_seconds):
        node = reply.metadata.src_node_id
        try:
            if reply.has_error():
                raise WireError(f"Flower error {reply.error.code}: {str(reply.error.reason)[-300:]}")
            answers[node] = QueryReply.from_content(reply.content)
        except WireError as problem:
            problems.append(str(problem))
            logger.warning("node %d is left out: %s", node, problem)
    if not answers:
        said = f"; the first said: {problems[0]}" if problems else f" within {timeout_seconds:g} seconds"
        raise RoundFailed(f"none of {len(messages)} nodes told which silos it has{said}")
    return dict(sorted(answers.items()))


def wait_for_nodes(
    grid: Grid, enough: Callable[[list[int]], bool], *, wait_seconds: float, pause_seconds: float = 0.2
) -> list[int]:
    """Wait until the connected nodes are `enough`, but no longer than `wait_seconds`.

    Returns:
        The nodes connected at the end, sorted; they may be fewer, also none.
    """
    end = time.monotonic() + wait_seconds
    while True:
        nodes = sorted(grid.get_node_ids())
        if enough(nodes) or time.monotonic() >= end:
            return nodes
        time.sleep(max(0.0, min(pause_seconds, end - time.monotonic())))


def check_devices(devices: Mapping[str, str], *, expects_gpu: bool) -> None:
    """Stop a simulation that trains on the CPU beside an idle GPU.

    Args:
        devices: what the silos (or nodes) said they compute on, "cpu" or "cuda", by name.
        expects_gpu: whether the server sees a GPU and ``train.device`` leaves the choice open.

    Raises:
        RoundFailed: a GPU is expected, and somebody computes on the CPU; the message has the remedy.
    """
    on_cpu = sorted(name for name, device in devices.items() if device == "cpu")
    if expects_gpu and on_cpu:
        raise RoundFailed(
            f"the server sees a GPU, but {len(on_cpu)} of {len(devices)} ({shown(on_cpu[0])} first) compute "
            f"on the CPU: Flower gives clients no GPU unless told to. Add {GPU_REMEDY} to flwr run, or "
            '--set engine.client-gpus=0.25 to fedmerge simulate, or set train.device = "cpu"'
        )
