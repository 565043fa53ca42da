"""The replies to evaluate messages: their mean, and whoever else wants to hear them."""

from __future__ import annotations

import logging
from collections.abc import Callable, Iterable, Sequence

from flwr.app import Message, MetricRecord

from fedmerge.errors import WireError
from fedmerge.server.reading import read_scores
from fedmerge.server.report import average
from fedmerge.wire.protocol import EXAMPLES

logger = logging.getLogger(__name__)


def evaluation(
    round: int, replies: Iterable[Message], hear: Callable[[Message], None]
) -> MetricRecord | None:
    """The mean of each metric over the nodes, weighted by examples; nodes that fail are left out.

    Args:
        round: whose adapter was evaluated.
        replies: as they come in.
        hear: is shown each of them.

    Returns:
        The means; None where no node answered with numbers.
    """
    scores: list[dict[str, float]] = []
    for reply in replies:
        hear(reply)
        try:
            scores.append(read_scores(reply))
        except WireError as problem:
            logger.warning("round %d: evaluation at node %d: %s", round, reply.metadata.src_node_id, problem)
    return average(scores, [score[EXAMPLES] for score in scores]) if scores else None


def others(messages: Sequence[Message], asked: Sequence[Message]) -> list[Message]:
    """Those of `messages` whose nodes none of `asked` goes to: a node evaluates once a round."""
    nodes = {message.metadata.dst_node_id for message in asked}
    return [message for message in messages if message.metadata.dst_node_id not in nodes]
