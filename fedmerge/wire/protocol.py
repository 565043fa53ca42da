"""What the messages between server and silos are called, and their builders and readers.

The layout is Flower's own (the one of its FedAvg), so that ``MergeStrategy`` can stand where FedAvg stood::

    instruction  {"arrays": broadcast, "config": Instruction}          + "arrays/<candidate>" in evaluations
    reply        {"arrays": delta, "metrics": scores and "num-examples", "fedmerge": who answers}
                                       + "statistics/<name>" where the instruction's "statistics" has the name
    query reply  {"fedmerge": QueryReply}

A Flower app of one's own needs one line in its train function: ``Message(reply_content(delta, examples),
reply_to=message)``. Under a rule that needs statistics of the silos (`fisher`, `regmean`) the instruction's
config names them, "fisher" say, and the reply has a record of float32 tensors for each: "statistics/fisher",
a value from 0 for each coordinate of each tensor of the broadcast, or "statistics/gram", for each LoRA module
by its name a (rank, rank) matrix (``reply_content(delta, examples, statistics=...)``).

Everything read here was written elsewhere: a wrong type is a `WireError`, never a crash.
"""

from __future__ import annotations

from collections.abc import Mapping

from flwr.app import MetricRecord, RecordDict
from torch import Tensor

from fedmerge.wire.encodings import encode, encode_statistic
from fedmerge.wire.instruction import (
    ARRAYS,
    CANDIDATE_PREFIX,
    CONFIG,
    RECEIVED,
    Instruction,
    instruction_content,
    read_candidates,
    read_instruction,
)
from fedmerge.wire.query import Card, QueryReply
from fedmerge.wire.records import to_record
from fedmerge.wire.sender import FEDMERGE, Sender, read_sender

__all__ = [
    "ARRAYS",
    "CANDIDATE_PREFIX",
    "CONFIG",
    "EXAMPLES",
    "FEDMERGE",
    "METRICS",
    "RECEIVED",
    "STATISTICS_PREFIX",
    "Card",
    "Instruction",
    "QueryReply",
    "Sender",
    "failure_content",
    "instruction_content",
    "read_candidates",
    "read_instruction",
    "read_sender",
    "reply_content",
]

METRICS = "metrics"
EXAMPLES = "num-examples"
STATISTICS_PREFIX = "statistics/"


def reply_content(
    delta: Mapping[str, Tensor] | None,
    examples: int,
    *,
    metrics: Mapping[str, float | list[float]] | None = None,
    sender: Sender | None = None,
    encoding: str = "exact",
    statistics: Mapping[str, Mapping[str, Tensor]] | None = None,
) -> RecordDict:
    """The content of a reply, for silos and for Flower apps of one's own.

    Args:
        delta: trained minus received, by tensor name and with the broadcast's shapes and dtypes; the trained
            tensors themselves under ``MergeStrategy(replies="weights")``; None in an evaluation.
        examples: training rows; the silo's weight.
        metrics: further numbers, "<candidate>/<split>/<name>" for scores.
        sender: who answers; may be left out outside of fedmerge's own silos.
        encoding: "exact", "bf16" or "fp16"; what the server's strategy was given.
        statistics: what the instruction asked for: "fisher" -> {tensor name: values}, "gram" -> {module:
            matrix}. They travel as float32 whatever the encoding.

    Example:
        >>> import torch
        >>> content = reply_content({"head.weight": torch.zeros(2, 3)}, examples=40)
        >>> sorted(content), content["metrics"]["num-examples"]
        (['arrays', 'metrics'], 40)
    """
    content = RecordDict({METRICS: MetricRecord({**(metrics or {}), EXAMPLES: int(examples)})})
    if delta is not None:
        content[ARRAYS] = to_record(encode(delta, encoding))
    for name, values in (statistics or {}).items():
        content[STATISTICS_PREFIX + name] = to_record(encode_statistic(values))
    if sender is not None:
        content[FEDMERGE] = sender.to_config()
    return content


def failure_content(sender: Sender) -> RecordDict:
    """The content of a reply that reports `sender.failure` and nothing else."""
    return RecordDict({METRICS: MetricRecord({EXAMPLES: 0}), FEDMERGE: sender.to_config()})
