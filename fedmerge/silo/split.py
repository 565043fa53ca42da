"""The examples of one silo's split, and their batches: the same ones for the same seed, anywhere."""

from __future__ import annotations

from collections.abc import Iterator, Sequence
from dataclasses import dataclass

import torch
from torch import Tensor

from fedmerge.silo.lora import AdaptedModel
from fedmerge.silo.tasks.task import Batch, Example, collate, padded
from fedmerge.silo.trunk import check_same


@dataclass(frozen=True)
class Split:
    """Encoded rows.

    Args:
        examples: in the order of the rows.
        pad: token number that fills batches up.
        device: where batches go.
        trunk: for each example the output of the frozen layers (length, hidden); None to compute them.
    """

    examples: Sequence[Example]
    pad: int
    device: torch.device
    trunk: Sequence[Tensor] | None = None

    @property
    def bytes(self) -> int:
        """Memory that the split takes."""
        tensors = [tensor for example in self.examples for tensor in (example.tokens, example.target)]
        return sum(tensor.numel() * tensor.element_size() for tensor in [*tensors, *(self.trunk or ())])

    def spread(self, count: int) -> Split:
        """At most so many examples, at even distances over the split; 0 keeps all.

        Sources are often sorted, by label say: the first rows would stand for a part of the split.

        Example:
            >>> lengths = [torch.zeros(length) for length in range(1, 11)]
            >>> split = Split([Example(tokens, tokens, 1) for tokens in lengths], 0, torch.device("cpu"))
            >>> [len(example.tokens) for example in split.spread(4).examples]
            [1, 3, 6, 8]
        """
        if not 0 < count < len(self.examples):
            return self
        rows = [place * len(self.examples) // count for place in range(count)]
        trunk = None if self.trunk is None else [self.trunk[row] for row in rows]
        return Split([self.examples[row] for row in rows], self.pad, self.device, trunk)

    def batch(self, rows: Sequence[int]) -> Batch:
        """The batch of some rows."""
        batch = collate([self.examples[row] for row in rows], self.pad, self.device)
        if self.trunk is None:
            return batch
        return batch.with_trunk(padded([self.trunk[row] for row in rows], 0.0))

    def in_order(self, size: int) -> Iterator[Batch]:
        """All rows once, those of like length together so that little is padded."""
        return (self.batch(rows) for rows in self._by_length(size))

    def shuffled(self, size: int, seed: int) -> Iterator[list[int]]:
        """Rows of one batch after another, for ever: each pass over the split is a new permutation."""
        generator = torch.Generator().manual_seed(seed)
        while True:
            order: list[int] = torch.randperm(len(self.examples), generator=generator).tolist()
            yield from _chunks(order, size)

    def batches_in_epoch(self, size: int) -> int:
        """Batches of one pass; the last one may be smaller."""
        return -(-len(self.examples) // size)

    def with_trunk(self, model: AdaptedModel, size: int) -> Split:
        """The same split with the frozen layers' output computed for every row.

        Raises:
            ConfigError: the base can't be cut there.
        """
        kept: list[Tensor] = [torch.empty(0)] * len(self.examples)
        model.train(False)
        for number, rows in enumerate(self._by_length(size)):
            batch = self.batch(rows)
            with torch.no_grad():
                hidden = model.cut.output(lambda batch=batch: model.run(batch))  # type: ignore[misc]
                if number == 0:
                    check_same(model.run(batch)[0], model.run(batch.with_trunk(hidden))[0], batch.mask)
                for row, output in zip(rows, hidden, strict=True):
                    kept[row] = output[: len(self.examples[row].tokens)].clone()
        return Split(self.examples, self.pad, self.device, kept)

    def _by_length(self, size: int) -> Iterator[list[int]]:
        order = sorted(range(len(self.examples)), key=lambda row: len(self.examples[row].tokens))
        return _chunks(order, size)


def _chunks(rows: Sequence[int], size: int) -> Iterator[list[int]]:
    return (list(rows[start : start + size]) for start in range(0, len(rows), size))
