"""What a task is: how rows become examples, what is minimised, what is scored."""

from __future__ import annotations

from collections.abc import Iterable, Mapping, Sequence
from contextlib import AbstractContextManager
from dataclasses import dataclass, replace
from typing import Any, ClassVar, Protocol

import torch
from torch import Tensor
from torch.nn.utils.rnn import pad_sequence
from transformers import PreTrainedTokenizerBase

from fedmerge.silo.base import Architecture
from fedmerge.silo.columns import Rows
from fedmerge.silo.settings import SiloSettings

IGNORED = -100
"""Target of a token that has no part in the loss."""

OUTCOMES, SIZES = "outcomes", "sizes"
"""What each sequence contributed to the metric, and what it counts for: the metric is the sum of the one over
the sum of the other."""

Scored = dict[str, float | list[float]]
"""Scores by name; lists under `OUTCOMES` and `SIZES`, in an order that is the same for every adapter."""


@dataclass(frozen=True)
class Example:
    """One sequence of training or scoring.

    Args:
        tokens: int32 (length,).
        target: int32; (length,) the next tokens, `IGNORED` where there is no loss, or () a label's number.
        count: what the loss is a mean over: targets of the sequence.
        bytes: of UTF-8 text that the targets stand for; 0 where that means nothing.
    """

    tokens: Tensor
    target: Tensor
    count: int = 1
    bytes: int = 0


@dataclass(frozen=True)
class Batch:
    """Examples padded on the right to one length, on the device.

    Args:
        tokens: int64 (rows, length).
        mask: int64 (rows, length), 1 where there is a token.
        target: int64 (rows, length) or (rows,).
        count: of targets in all rows.
        sizes: bytes of text in each row.
        trunk: output of the frozen layers below the adapter (rows, length, hidden); None to compute it.
    """

    tokens: Tensor
    mask: Tensor
    target: Tensor
    count: int
    sizes: tuple[int, ...]
    trunk: Tensor | None = None

    def with_trunk(self, trunk: Tensor | None) -> Batch:
        """The same batch with the trunk's output at hand."""
        return replace(self, trunk=trunk)


def collate(examples: Sequence[Example], pad: int, device: torch.device) -> Batch:
    """Pad examples to their longest."""
    tokens = padded([e.tokens for e in examples], pad)
    lengths = torch.tensor([len(e.tokens) for e in examples])
    mask = (torch.arange(tokens.shape[1]) < lengths[:, None]).long()
    targets = [e.target for e in examples]
    target = padded(targets, IGNORED) if targets[0].ndim else torch.stack(targets)
    return Batch(
        tokens=tokens.long().to(device),
        mask=mask.to(device),
        target=target.long().to(device),
        count=sum(e.count for e in examples),
        sizes=tuple(e.bytes for e in examples),
    )


def padded(rows: Sequence[Tensor], value: float) -> Tensor:
    """Rows of `(length, ...)` as one tensor, the shorter ones filled up on the right.

    Packed rows are all of one length: then they are only stacked, which is many times faster.
    """
    if len({len(row) for row in rows}) == 1:
        return torch.stack(list(rows))
    return pad_sequence(list(rows), batch_first=True, padding_value=value)


class Model(Protocol):
    """What a task sees of the base with its adapter (`fedmerge.silo.lora.AdaptedModel`)."""

    @property
    def device(self) -> torch.device:
        """Where batches go."""
        ...

    @property
    def head(self) -> Mapping[str, Tensor]:
        """What trains beside LoRA, by its name in the adapter."""
        ...

    def run(self, batch: Batch) -> Any:
        """The base's output as transformers gives it: with `logits`, or with `last_hidden_state`."""
        ...

    def untouched(self) -> AbstractContextManager[None]:
        """A context in which the base runs without its adapter, dropout or gradients."""
        ...


class Task(Protocol):
    """One way to learn from a silo's rows; made once for each set of labels.

    A task of one's own is a class with these members in the entry point group `fedmerge.tasks`, made
    as `Class(settings, tokenizer, labels)`; `task.kind` is the entry point's name.

    Attributes:
        architecture: what is needed of the base.
        metric: name of the score that a run is judged by.
        higher_is_better: the metric's direction.
    """

    architecture: ClassVar[Architecture]
    metric: ClassVar[str]
    higher_is_better: ClassVar[bool]

    def __init__(
        self, settings: SiloSettings, tokenizer: PreTrainedTokenizerBase, labels: Sequence[str]
    ) -> None:
        """Take the settings; raise ConfigError where they don't fit."""
        ...

    @classmethod
    def initial_head(
        cls, settings: SiloSettings, hidden_size: int, labels: Sequence[str]
    ) -> dict[str, Tensor]:
        """What trains beside LoRA, as the first round receives it; names start with "head."."""
        ...

    def prepare(self, model: Model) -> None:
        """Compute what is needed of the frozen base, once."""
        ...

    def encode(self, rows: Rows) -> list[Example]:
        """Rows as sequences, in their order; several rows may share a sequence."""
        ...

    def loss(self, model: Model, batch: Batch) -> Tensor:
        """The sum of the losses of the batch's targets, a scalar that gradients flow back from."""
        ...

    def score(self, model: Model, batches: Iterable[Batch], train: Iterable[Batch]) -> Scored:
        """Scores over all batches: "loss" (mean), "count" (what the metric is a mean over), the metric.

        A task may add lists: `OUTCOMES` and `SIZES`, a value a sequence, which comparisons of adapters on the
        very same rows need for their standard error. `train` are the silo's training rows, for tasks that
        score against them.
        """
        ...
