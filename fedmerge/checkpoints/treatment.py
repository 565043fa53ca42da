"""How each tensor of a checkpoint is merged under a rule, and the memory that this takes."""

from __future__ import annotations

from collections.abc import Iterable, Mapping
from dataclasses import dataclass
from enum import Enum

from fedmerge.checkpoints.trim import split_trim
from fedmerge.errors import RuleError
from fedmerge.rules import Rule, resolve
from fedmerge.wire.checkpoint import Entry

NARROWEST = 1 << 12
"""Coordinates of the smallest tile; all others but the last are multiples of it."""

WIDEST_ENTRIES = 1 << 22
"""Clients times coordinates of the largest tile: more gains no speed."""

FIXED = 24 << 20
"""Bytes that a merge takes whatever its tiles: counters, Gram matrices, allocator slack."""


class Way(Enum):
    """How a tensor is merged."""

    COPY = "copied"
    TILES = "by tiles"
    TRIM = "by tiles, after reads for the trim's thresholds"
    SUM = "by tiles, after a read for the coefficients"
    WHOLE = "as a whole"


@dataclass(frozen=True)
class Treatment:
    """How one tensor is merged.

    Args:
        way: of its arithmetic.
        rule: for this tensor; None where it is copied.
        together: whether the rule decides over all tensors that it merges at once.
    """

    way: Way
    rule: Rule | None = None
    together: bool = False

    def bytes_each(self, clients: int) -> int:
        """Working bytes of one coordinate, at most: measured over the catalogue, with some air."""
        match self.way:
            case Way.COPY:
                return 16
            case Way.SUM:
                return 12 * clients + 96
            case Way.TILES | Way.TRIM:
                return 56 * clients + 128
            case Way.WHOLE:
                return (64 if self.rule is not None and self.rule.kind == "matrix" else 48) * clients + 128

    def reads(self) -> int:
        """How often the tensor is read."""
        return {Way.TRIM: 3 + self.together, Way.SUM: 2}.get(self.way, 1)


def treat(rule: Rule, entries: Iterable[Entry]) -> Mapping[str, Treatment]:
    """Choose a treatment for each tensor.

    Raises:
        RuleError: a rule that whole checkpoints can't be merged by.
    """
    return {
        entry.name: _treatment(resolve(rule, entry.name))
        if entry.dtype.is_floating_point
        else Treatment(Way.COPY)
        for entry in entries
    }


def _treatment(rule: Rule) -> Treatment:
    needed = sorted(getattr(rule, "needs", ()))
    if needed:
        raise RuleError(
            f"{rule} needs what silos measure ({', '.join(needed)}), and checkpoints on disk do not bring it"
        )
    together = rule.scope == "adapter"
    if rule.kind == "coefficients":
        return Treatment(Way.SUM, rule, together)
    if rule.kind not in ("elementwise", "matrix"):
        raise RuleError(f"{rule} is a rule of kind {rule.kind!r}, which works on LoRA factors only")
    if rule.separable and not together:
        return Treatment(Way.TILES, rule)
    parts = split_trim(rule)
    if parts is not None and parts[1].scope == "tensor":
        return Treatment(Way.TRIM, rule, together)
    if together:
        raise RuleError(
            f"{rule} must see a whole model as one row, which no checkpoint is small enough for; rules over "
            "the whole adapter that trim by magnitude first, or go by inner products, can be used"
        )
    return Treatment(Way.WHOLE, rule)


def width_of(entry: Entry, treatment: Treatment, clients: int, memory: int) -> int:
    """Coordinates of a tile that fits; less than `least_width` where none fits."""
    fits = max(0, memory - FIXED) // treatment.bytes_each(clients)
    if treatment.way is Way.WHOLE:
        return max(1, min(fits, entry.coordinates))
    width = min(fits, WIDEST_ENTRIES // clients)
    return max(1, min(max(1, width // NARROWEST) * NARROWEST, entry.coordinates))


def least_width(entry: Entry, treatment: Treatment) -> int:
    """Coordinates that must be in memory together."""
    return entry.coordinates if treatment.way is Way.WHOLE else min(NARROWEST, entry.coordinates)


def least_memory(entry: Entry, treatment: Treatment, clients: int) -> int:
    """Bytes that a tensor's merge takes at least."""
    return FIXED + least_width(entry, treatment) * treatment.bytes_each(clients)
