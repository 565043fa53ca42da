"""The trim of a tensor that does not fit into memory: the exact threshold of each client, from histograms.

A magnitude's bits, read as a whole number, are ordered as magnitudes are. So the threshold is found 16 bits
at a time, the upper ones first, with one read of the tensor and 65536 counters a client for each step: two
for float32, four for float64. What is kept is bit for bit what `KeepLargest` keeps.
"""

from __future__ import annotations

from collections.abc import Callable, Iterable
from dataclasses import dataclass

import torch
from torch import Tensor

from fedmerge.rules import Chain, KeepLargest, Rule

DIGIT = 16


def split_trim(rule: Rule) -> tuple[KeepLargest, Chain] | None:
    """Take the trim out of a chain in which it comes first and nothing else needs a whole tensor.

    Example:
        >>> from fedmerge.rules import median, ties
        >>> trim, rest = split_trim(ties(density=0.2))
        >>> print(trim, rest)
        keep_largest(density=0.2) chain(elect_sign(), mean())
        >>> split_trim(median()) is None
        True
    """
    if not isinstance(rule, Chain):
        return None
    whole = [stage for stage in rule.stages if not stage.separable]
    sparsify = [stage for stage in rule.stages if stage.phase == "sparsify"]
    if len(whole) != 1 or sparsify[:1] != whole or type(whole[0]) is not KeepLargest:
        return None
    return whole[0], Chain(tuple(stage for stage in rule.stages if stage is not whole[0]))


@dataclass
class Cut:
    """One client's threshold: what is kept of it, as its tiles go by in order.

    Args:
        threshold: magnitudes above it are kept.
        ties: how many equal to it still are, those of lowest index.
    """

    threshold: Tensor
    ties: int

    def __call__(self, row: Tensor) -> Tensor:
        """The next tile of the client, with the smaller entries set to 0."""
        magnitude = row.abs()
        kept = magnitude > self.threshold
        if self.ties:
            tied = magnitude == self.threshold
            if int(tied.sum()) > self.ties:
                tied &= tied.cumsum(0) <= self.ties
            self.ties -= int(tied.sum())
            kept |= tied
        return row.where(kept, 0.0)


def cuts(read: Callable[[], Iterable[Tensor]], clients: int, count: int, dtype: torch.dtype) -> list[Cut]:
    """Each client's threshold for keeping exactly `count` entries.

    Args:
        read: gives all tiles `(clients, width)`, in order; asked once for every 16 bits.
        clients: rows of a tile.
        count: how many are kept of a client, from 0.
        dtype: of the tiles, float32 or float64.

    Example:
        >>> tile = torch.tensor([[3.0, -5.0, 1.0, 5.0]])
        >>> cuts(lambda: [tile], 1, 1, torch.float32)[0](tile[0])
        tensor([ 0., -5.,  0.,  0.])
    """
    if count == 0:
        return [Cut(torch.tensor(torch.inf, dtype=dtype), 0) for _ in range(clients)]
    whole = torch.int32 if dtype == torch.float32 else torch.int64
    found, left = [0] * clients, [count] * clients
    for shift in range(dtype.itemsize * 8 - DIGIT, -1, -DIGIT):
        counters = torch.zeros(clients, 1 << DIGIT, dtype=torch.int64)
        for tile in read():
            for client, (row, prefix) in enumerate(zip(tile, found, strict=True)):
                keys = row.abs().view(whole).to(torch.int64)
                upper = keys >> shift
                if shift < dtype.itemsize * 8 - DIGIT:
                    upper = upper[(upper >> DIGIT) == prefix]
                counters[client] += torch.bincount(upper & ((1 << DIGIT) - 1), minlength=1 << DIGIT)
        for client, counter in enumerate(counters):
            digit, above = _digit(counter, left[client])
            found[client] = (found[client] << DIGIT) | digit
            left[client] -= above
    thresholds = torch.tensor(found, dtype=whole).view(dtype)
    return [Cut(threshold, ties) for threshold, ties in zip(thresholds, left, strict=True)]


def _digit(counter: Tensor, count: int) -> tuple[int, int]:
    """The digit at which the `count`-th largest lies, and how many have a larger one."""
    from_above = counter.flip(0).cumsum(0)
    place = int(torch.searchsorted(from_above, count))
    above = int(from_above[place - 1]) if place else 0
    return len(counter) - 1 - place, above
