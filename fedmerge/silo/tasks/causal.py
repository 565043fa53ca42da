"""Next tokens of text, judged in bits per byte."""

from __future__ import annotations

import logging
import math
from collections.abc import Iterable, Sequence
from typing import ClassVar

import numpy as np
import torch
from torch import Tensor
from torch.nn.functional import cross_entropy
from transformers import PreTrainedTokenizerBase

from fedmerge.errors import ConfigError
from fedmerge.silo.base import Architecture
from fedmerge.silo.columns import Rows
from fedmerge.silo.settings import SiloSettings
from fedmerge.silo.tasks.documents import Document, documents, opening
from fedmerge.silo.tasks.task import IGNORED, OUTCOMES, SIZES, Batch, Example, Model, Scored
from fedmerge.silo.tokens import Numbers

logger = logging.getLogger(__name__)


class CausalLanguage:
    """Predict the next token.

    Bits per byte are all nats of the predicted tokens over ln 2 and over the bytes of text these
    tokens stand for. End tokens cost bits and stand for no bytes. The score does not depend on the
    tokenizer's vocabulary, and lower is better.

    With packing, rows of plain text are joined and cut into sequences of `max_length` inputs; each
    sequence starts from an empty context, attention crosses the ends of rows inside it, and every
    token is predicted exactly once. Without packing, and for chats and completions, a row is a
    sequence, cut off at `max_length`.
    """

    architecture: ClassVar[Architecture] = "causal-lm"
    metric: ClassVar[str] = "bits_per_byte"
    higher_is_better: ClassVar[bool] = False

    def __init__(
        self, settings: SiloSettings, tokenizer: PreTrainedTokenizerBase, labels: Sequence[str] = ()
    ) -> None:
        """Take the settings; labels have no part in this task."""
        self._data = settings.data
        self._length = settings.train.max_length
        self._packing = settings.train.packing and not (settings.data.messages or settings.data.prompt)
        self._tokenizer = tokenizer

    @classmethod
    def initial_head(
        cls, settings: SiloSettings, hidden_size: int, labels: Sequence[str]
    ) -> dict[str, Tensor]:
        """Nothing trains beside LoRA."""
        return {}

    def prepare(self, model: Model) -> None:
        """Nothing is needed of the frozen base."""

    def encode(self, rows: Rows) -> list[Example]:
        """Rows as sequences.

        Raises:
            ConfigError: the tokenizer lacks what the columns need, or nothing is left to predict.
        """
        found = documents(rows, self._data, self._tokenizer)
        if self._packing:
            found = [_joined(found)] if found else []
        # A chat's template writes the beginning token itself, and it opens with a turn that isn't scored.
        first = [] if self._data.messages else [opening(self._tokenizer)]
        examples = [example for document in found for example in self._sequences(document, first)]
        kept = [example for example in examples if example.count]
        if len(kept) < len(examples):
            logger.warning(
                "%d of %d rows have nothing to predict within train.max-length = %d tokens and are left out",
                *(len(examples) - len(kept), len(examples), self._length),
            )
        if rows and not kept:
            raise ConfigError(
                f"no row has anything to predict within train.max-length = {self._length} tokens"
            )
        return kept

    def loss(self, model: Model, batch: Batch) -> Tensor:
        """Nats of all predicted tokens of the batch."""
        logits = model.run(batch).logits
        wanted = batch.target != IGNORED
        # Only the predicted places are turned into float32: prompts and padding cost nothing.
        return cross_entropy(logits[wanted].float(), batch.target[wanted], reduction="sum")

    def score(self, model: Model, batches: Iterable[Batch], train: Iterable[Batch]) -> Scored:
        """Mean nats of a token as "loss", bytes of text as "count", and bits per byte."""
        nats: list[float] = []
        sizes: list[float] = []
        tokens = 0
        for batch in batches:
            nats += self._nats(model, batch)
            sizes += map(float, batch.sizes)
            tokens += batch.count
        bits = [value / math.log(2) for value in nats]
        return {
            "loss": math.fsum(nats) / max(1, tokens),
            "count": math.fsum(sizes),
            self.metric: math.fsum(bits) / max(1.0, math.fsum(sizes)),
            OUTCOMES: bits,
            SIZES: sizes,
        }

    def _nats(self, model: Model, batch: Batch) -> list[float]:
        """Nats of each sequence's predicted tokens."""
        logits = model.run(batch).logits
        wanted = batch.target != IGNORED
        each = cross_entropy(logits[wanted].float(), batch.target[wanted], reduction="none").double()
        # One sum a sequence, in order: an `index_add` adds in any order on a GPU.
        return [float(part.sum()) for part in torch.split(each, wanted.sum(dim=1).tolist())]

    def _sequences(self, document: Document, first: list[int]) -> Iterable[Example]:
        """Inputs and next tokens, in pieces of `max_length`; a row that is not packed has one piece."""
        inputs = np.append(first, document.tokens).astype(np.int64)
        start = 1 - len(first)  # the first token of a chat is given
        targets = np.where(document.scored == 1, document.tokens, IGNORED)[start:]
        bytes_ = document.bytes[start:]
        end = len(targets) if self._packing else min(len(targets), self._length)
        for at in range(0, end, self._length):
            piece = slice(at, min(at + self._length, end))
            yield _example(inputs[piece], targets[piece], int(bytes_[piece].sum()))


def _example(inputs: Numbers, targets: Numbers, bytes_: int) -> Example:
    return Example(
        tokens=torch.from_numpy(inputs.astype(np.int32)),
        target=torch.from_numpy(targets.astype(np.int32)),
        count=int((targets != IGNORED).sum()),
        bytes=bytes_,
    )


def _joined(found: Sequence[Document]) -> Document:
    return Document(
        tokens=np.concatenate([document.tokens for document in found]),
        bytes=np.concatenate([document.bytes for document in found]),
        scored=np.concatenate([document.scored for document in found]),
    )
