"""What a reply holds, read without belief: each function gives a plain value, or says what is wrong."""

from __future__ import annotations

import math
from collections.abc import Mapping

import torch
from flwr.app import ArrayRecord, Message, MetricRecord, RecordDict
from torch import Tensor

from fedmerge.errors import WireError
from fedmerge.rules.statistics import STATISTICS
from fedmerge.wire.protocol import ARRAYS, EXAMPLES, METRICS, STATISTICS_PREFIX, read_sender
from fedmerge.wire.schema import Schema, shown

MOST_EXAMPLES = 10**12
"""Training rows above this are no count of rows; 2^62 would silence every other silo."""

LARGEST_METRIC = 1e100
"""Sums of smaller numbers are finite, however many silos there are."""

UNREADABLE, OVERSIZED, FOREIGN = 1001, 1002, 1003
"""Error codes of our own, of replies that could not be put together (pulling.py)."""

OURS = {
    UNREADABLE: ("reply/broken", "it can't be read"),
    OVERSIZED: ("reply/too-large", "it is larger than any answer to what was asked"),
    FOREIGN: ("reply/forged", "it says that it answers another message"),
}

ERROR_CODES = {
    0: "unknown error",
    1: "the ClientApp could not be loaded",
    2: "the ClientApp raised an exception",
    3: "the message was not available",
    4: "the reply was not available",
    5: "the node is gone",
    6: "a mod's precondition failed",
    7: "invalid FAB",
    8: "the ClientApp crashed",
}
"""Flower's error codes (flwr.common.constant.ErrorCode) in words."""


def error_of(reply: Message, *, reveal: bool = False) -> str:
    """Flower's error in words; `reveal` adds the text that came with it, which may quote private things."""
    if reply.error.code in OURS:
        return OURS[reply.error.code][1]
    said = f"Flower error {reply.error.code}, {ERROR_CODES.get(reply.error.code, 'unknown error')}"
    text = " ".join((reply.error.reason or "").split())[-300:] if reveal else ""
    return f"{said}: {text}" if text else said


def refusal_code(reply: Message) -> str:
    """The short code of an error: one of ours, or "flower/" and Flower's number."""
    return OURS[reply.error.code][0] if reply.error.code in OURS else f"flower/{reply.error.code}"


def read_scores(reply: Message) -> dict[str, float]:
    """The metrics of a reply to an evaluate message, with "num-examples" above 0.

    Raises:
        WireError: the node failed, or its numbers are none.
    """
    if reply.has_error():
        raise WireError(error_of(reply))
    sender = read_sender(reply.content)
    if sender.failure:
        raise WireError(sender.complaint)
    metrics = metrics_of(reply.content)
    check_examples(metrics.get(EXAMPLES))
    return numbers_of(metrics)


def check_examples(value: object) -> float:
    """The number of training rows of a reply.

    Raises:
        WireError: it is missing, no number, not finite, not above 0, or more than can be.

    Example:
        >>> check_examples(12)
        12.0
    """
    if value is None:
        raise WireError(f"it has no metric {EXAMPLES!r}")
    if isinstance(value, bool) or not isinstance(value, int | float):
        raise WireError(f"{EXAMPLES!r} is a {type(value).__name__}, expected one number")
    if not 0 < value <= MOST_EXAMPLES:  # also NaN
        raise WireError(f"{EXAMPLES!r} is {value:g}, expected a number above 0 and at most {MOST_EXAMPLES:g}")
    return float(value)


def finite_norm(tensors: Mapping[str, Tensor]) -> float:
    """The Euclidean length over all floating tensors, in float64.

    Raises:
        WireError: a value is NaN or infinite. Such a value spoils its tensor's length, so that values are
            looked at one by one only where a length is not finite.
    """
    lengths = {
        name: float(torch.linalg.vector_norm(tensor, dtype=torch.float64))
        for name, tensor in tensors.items()
        if tensor.is_floating_point()
    }
    for name, length in lengths.items():
        if not math.isfinite(length):
            check_finite(name, tensors[name])
    return math.hypot(*lengths.values())  # of float64 values squares may overflow, and raise


def subtract(trained: Tensor, received: Tensor) -> Tensor:
    """Trained minus received, in float32 at least: a difference of half-precision numbers is rounded once."""
    wide = torch.float32 if trained.dtype in (torch.bfloat16, torch.float16) else trained.dtype
    return trained.to(wide) - received.to(device=trained.device, dtype=wide)


def check_finite(name: str, value: Tensor) -> None:
    """Refuse NaN and infinity.

    Raises:
        WireError: there are some; the message names the tensor and says how many.
    """
    if value.is_floating_point() and not bool(torch.isfinite(value).all()):
        nan, bad = int(torch.isnan(value).sum()), int((~torch.isfinite(value)).sum())
        raise WireError(f"{shown(name)} has {nan} NaN and {bad - nan} infinite of {value.numel()} values")


def arrays_of(content: RecordDict) -> ArrayRecord:
    """The record of tensors: "arrays", or the only one there is."""
    records = {
        key: record
        for key, record in content.items()
        if isinstance(record, ArrayRecord) and not key.startswith(STATISTICS_PREFIX)
    }
    if ARRAYS in records:
        return records[ARRAYS]
    if len(records) != 1:
        raise WireError(f"it has {len(records)} array records and none called {ARRAYS!r}")
    return next(iter(records.values()))


def statistic_of(content: RecordDict, name: str, schema: Schema) -> ArrayRecord:
    """A copy of the record of a statistic, to be emptied while it is decoded.

    Raises:
        WireError: there is none, though there is something to measure.
    """
    record = content.get(STATISTICS_PREFIX + name)
    if isinstance(record, ArrayRecord):
        return record.copy()
    if not schema.entries:
        return ArrayRecord()
    raise WireError(
        f"it carries no {STATISTICS_PREFIX + name!r} ({STATISTICS[name]}), which the server's rule needs; "
        "is its fedmerge older than the server's?"
    )


def metrics_of(content: RecordDict) -> MetricRecord:
    """The record of metrics: "metrics", or the only one there is."""
    records = {key: record for key, record in content.items() if isinstance(record, MetricRecord)}
    if METRICS in records:
        return records[METRICS]
    if len(records) != 1:
        raise WireError(f"it has {len(records)} metric records and none called {METRICS!r}")
    return next(iter(records.values()))


def numbers_of(metrics: MetricRecord) -> dict[str, float]:
    """The metrics that are single numbers, in their names' order; what can't be summed up is NaN."""
    return {key: _number(value) for key, value in sorted(metrics.items()) if isinstance(value, int | float)}


def _number(value: float) -> float:
    return float(value) if abs(value) < LARGEST_METRIC else math.nan
