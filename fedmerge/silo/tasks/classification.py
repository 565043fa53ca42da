"""Labels of text by the mean embedding of its tokens, under one of three heads."""

from __future__ import annotations

from collections.abc import Iterable, Sequence
from dataclasses import dataclass
from typing import ClassVar

import torch
from torch import Tensor
from torch.nn.functional import cross_entropy, normalize, one_hot
from transformers import PreTrainedTokenizerBase

from fedmerge.errors import ConfigError, nearest
from fedmerge.silo.base import Architecture
from fedmerge.silo.columns import Rows
from fedmerge.silo.settings import SiloSettings
from fedmerge.silo.tasks.task import OUTCOMES, SIZES, Batch, Example, Model, Scored, collate
from fedmerge.silo.tokens import tokenize

SHARPNESS = 20.0
"""Cosines are multiplied by it to be logits (sentence-transformers' scale)."""

WEIGHT, BIAS = "head.weight", "head.bias"

_BATCH = 32


class Classification:
    """One label for each row, judged by accuracy: higher is better.

    The embedding of a text is the mean of its tokens' last hidden states. Heads (`task.head`):

    - label: logits are 20 times the cosine with the frozen base's embedding of the label's name,
      underscores read as spaces. Nothing trains in it, silos with different labels share it.
    - linear: logits are `embedding @ head.weight.T + head.bias`; both train, from zero.
    - centroid: trained as the label head; a text gets the label of the nearest class mean of the
      silo's own training rows, under the adapter that is scored. (The baseline "centroids" of a simulation
      takes the training rows of all silos.) It knows only labels that the silo has rows of: a score
      is a silo's own, and a row of any other label counts as wrong. Its "loss" is the label head's.
    """

    architecture: ClassVar[Architecture] = "encoder"
    metric: ClassVar[str] = "accuracy"
    higher_is_better: ClassVar[bool] = True

    def __init__(
        self, settings: SiloSettings, tokenizer: PreTrainedTokenizerBase, labels: Sequence[str]
    ) -> None:
        """Take settings and labels.

        Raises:
            ConfigError: fewer than two labels.
        """
        _check_labels(labels)
        self._settings = settings
        self._tokenizer = tokenizer
        self._labels = {label: number for number, label in enumerate(labels)}
        self._names: Tensor | None = None

    @classmethod
    def initial_head(
        cls, settings: SiloSettings, hidden_size: int, labels: Sequence[str]
    ) -> dict[str, Tensor]:
        """Zeros for the linear head; nothing for the others.

        Raises:
            ConfigError: fewer than two labels for a linear head.
        """
        if settings.task.head != "linear":
            return {}
        _check_labels(labels)
        return {WEIGHT: torch.zeros(len(labels), hidden_size), BIAS: torch.zeros(len(labels))}

    def prepare(self, model: Model) -> None:
        """Embed the labels' names by the untouched base."""
        if self._settings.task.head == "linear":
            return
        examples = self._examples(
            [label.replace("_", " ") for label in self._labels], [0] * len(self._labels)
        )
        pad = self._tokenizer.pad_token_id or 0
        with model.untouched():
            parts = [
                embed(model, collate(examples[start : start + _BATCH], pad, model.device))
                for start in range(0, len(examples), _BATCH)
            ]
        self._names = normalize(torch.cat(parts), dim=1)

    def encode(self, rows: Rows) -> list[Example]:
        """Each row as one sequence, cut off at `train.max-length`.

        Raises:
            ConfigError: a label is not among the agreed ones.
        """
        data = self._settings.data
        numbers = [self._number(str(row[data.label])) for row in rows]
        return self._examples([row[data.text] for row in rows], numbers)

    def loss(self, model: Model, batch: Batch) -> Tensor:
        """The sum of the rows' cross entropies."""
        return cross_entropy(self._logits(model, embed(model, batch)), batch.target, reduction="sum")

    def score(self, model: Model, batches: Iterable[Batch], train: Iterable[Batch]) -> Scored:
        """Mean cross entropy as "loss", rows as "count", and the accuracy."""
        centroids = (
            _centroids(model, train, len(self._labels)) if self._settings.task.head == "centroid" else None
        )
        loss, count = 0.0, 0
        right: list[float] = []
        for batch in batches:
            embedding = embed(model, batch)
            logits = self._logits(model, embedding)
            loss += cross_entropy(logits, batch.target, reduction="sum").item()
            guesses = logits if centroids is None else centroids.closeness(embedding)
            right += (guesses.argmax(dim=1) == batch.target).double().tolist()
            count += batch.count
        return {
            "loss": loss / max(1, count),
            "count": float(count),
            self.metric: sum(right) / max(1, count),
            OUTCOMES: right,
            SIZES: [1.0] * len(right),
        }

    def _logits(self, model: Model, embedding: Tensor) -> Tensor:
        if self._settings.task.head == "linear":
            return embedding @ model.head[WEIGHT].T + model.head[BIAS]
        assert self._names is not None, "prepare comes first"
        return SHARPNESS * normalize(embedding, dim=1) @ self._names.T

    def _number(self, label: str) -> int:
        if label not in self._labels:
            raise ConfigError(
                f"label {label!r} is not among the {len(self._labels)} agreed labels (data.labels); "
                f"{nearest(label, list(self._labels))[:300]}"
            )
        return self._labels[label]

    def _examples(self, texts: Sequence[str], numbers: Sequence[int]) -> list[Example]:
        tokenized = tokenize(self._tokenizer, texts, special=True, max_length=self._settings.train.max_length)
        return [
            Example(torch.from_numpy(tokens.numbers).int(), torch.tensor(number, dtype=torch.int32))
            for tokens, number in zip(tokenized, numbers, strict=True)
        ]


def embed(model: Model, batch: Batch) -> Tensor:
    """Means of the last hidden states over the tokens of each row, in float32 (rows, hidden)."""
    hidden: Tensor = model.run(batch).last_hidden_state.float()
    mask = batch.mask[..., None].float()
    return (hidden * mask).sum(dim=1) / mask.sum(dim=1).clamp(min=1)


@dataclass(frozen=True)
class _Centroids:
    """Unit class means (labels, hidden), and which labels have any row (labels,)."""

    means: Tensor
    known: Tensor

    def closeness(self, embedding: Tensor) -> Tensor:
        """Cosine with each class mean (rows, labels); minus infinity for labels without rows."""
        cosines = normalize(embedding, dim=1) @ self.means.T
        return cosines.masked_fill(~self.known, -torch.inf)


def _centroids(model: Model, train: Iterable[Batch], labels: int) -> _Centroids:
    sums: Tensor | float = 0.0
    counts: Tensor = torch.zeros(labels, device=model.device)
    for batch in train:
        hot = one_hot(batch.target, labels).float()
        # A product with a one-hot matrix adds in a fixed order, also on a GPU.
        sums = sums + hot.T @ normalize(embed(model, batch), dim=1)
        counts = counts + hot.sum(dim=0)
    if not isinstance(sums, Tensor):
        raise ConfigError("task.head = 'centroid' needs training rows: class means are taken over them")
    return _Centroids(normalize(sums, dim=1), counts > 0)


def _check_labels(labels: Sequence[str]) -> None:
    if len(labels) < 2 or len(set(labels)) < len(labels):
        raise ConfigError(
            "task.kind = 'classification' needs at least two labels, each once; "
            f"agreed were {list(labels)[:10]}"
        )
