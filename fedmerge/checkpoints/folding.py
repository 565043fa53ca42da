"""An adapter folded into its base: a whole model that needs no PEFT to load."""

from __future__ import annotations

from collections.abc import Callable, Iterator, Mapping
from dataclasses import dataclass
from pathlib import Path

import torch
from torch import Tensor

from fedmerge.adapters import Adapter
from fedmerge.adapters.adapter import rounded
from fedmerge.adapters.pairs import split_names
from fedmerge.checkpoints.carried import carried
from fedmerge.checkpoints.deltas import spans
from fedmerge.checkpoints.whole_weights import place_in
from fedmerge.errors import AdapterMismatch
from fedmerge.wire.checkpoint import TIED, Checkpoint
from fedmerge.wire.checkpoint_writer import SHARD_BYTES, shards_of, write_checkpoint

WIDTH = 1 << 20
"""Coordinates folded at once."""


@dataclass(frozen=True, eq=False)
class Update:
    """One LoRA pair at its place: the base's tensor gains `left @ right`, float64."""

    left: Tensor
    right: Tensor


def fold(
    adapter: Adapter,
    base: Checkpoint,
    output: Path,
    *,
    files: Mapping[str, bytes] | None = None,
    shard_bytes: int = SHARD_BYTES,
    advance: Callable[[str], None] = lambda name: None,
) -> Path:
    """Write `base + lora_scaling * B @ A`, in float64, each value rounded once to the base's dtype.

    Args:
        adapter: with LoRA settings.
        base: what it was trained on; its config and tokenizer are carried along.
        output: a folder that does not exist, or an empty one.
        files: further files, README.md say.
        shard_bytes: largest file, unless a single tensor is larger.
        advance: told each tensor's name when it is written.

    Returns:
        The folder.

    Raises:
        AdapterMismatch: a tensor of the adapter that has no place in the base, or does not fit it.
        WireError: a file that can't be read, or a folder that can't be written.
    """
    updates, whole = updates_in(adapter, base)
    others = carried(base.folder) | dict(files or {})

    def values(name: str) -> Iterator[Tensor]:
        yield from _folded(base, name, updates.get(name), whole.get(name))
        advance(name)

    return write_checkpoint(output, shards_of(base.entries.values(), shard_bytes), values, lambda: others)


def updates_in(adapter: Adapter, base: Checkpoint) -> tuple[dict[str, Update], dict[str, Tensor]]:
    """An adapter's updates and whole weights by the base's names.

    Raises:
        AdapterMismatch: no LoRA settings, no such tensor in the base, another shape, or values that are not
            finite.
    """
    if adapter.lora is None:
        raise AdapterMismatch("the adapter has no LoRA settings, so that its scaling is not known")
    pairs, others = split_names(adapter.tensors)
    turned = adapter.metadata.get("fan_in_fan_out") == "true"
    updates: dict[str, Update] = {}
    for pair in pairs:
        place = _place(base, f"{pair.module}.weight")
        a, b = (factor.detach().to(torch.float64) for factor in pair.factors(adapter.tensors))
        b = adapter.lora.scaling * b
        updates[place] = Update(a.T, b.T) if turned else Update(b, a)
        _check(pair.module, (updates[place].left.shape[0], updates[place].right.shape[1]), base, place)
        if not bool(a.isfinite().all() and b.isfinite().all()):
            raise AdapterMismatch(f"{pair.module!r}: its factors hold NaN or Inf")
    whole = {_place(base, name): adapter.tensors[name] for name in others}
    for place, tensor in whole.items():
        _check(place, tuple(tensor.shape), base, place)
    return updates, whole


def _place(base: Checkpoint, name: str) -> str:
    place = place_in(base, name)
    if place is None:
        tied = name.endswith(TIED) and base.config.get("tie_word_embeddings")
        why = "it is tied to the embeddings there" if tied else "a fold would lose it"
        raise AdapterMismatch(f"{name!r} of the adapter has no place in the base: {why}")
    return place


def _check(what: str, shape: tuple[int, ...], base: Checkpoint, place: str) -> None:
    if shape != base.entries[place].shape:
        raise AdapterMismatch(
            f"{what!r}: the adapter's update has shape {shape}, the base's {place!r} has "
            f"{base.entries[place].shape}"
        )


def _folded(base: Checkpoint, name: str, update: Update | None, whole: Tensor | None) -> Iterator[Tensor]:
    """A tensor's values in the base's dtype, some rows at a time."""
    entry = base.entries[name]
    if whole is not None:
        yield _checked(name, rounded(whole.detach().reshape(-1), entry.dtype))
        return
    columns = update.right.shape[1] if update else 1
    rows = max(1, WIDTH // columns)
    for start, stop in spans(entry.coordinates, rows * columns):
        values = base.read(name, start, stop)
        if update is not None:
            change = update.left[start // columns : stop // columns] @ update.right
            values = _checked(name, (values.to(torch.float64) + change.reshape(-1)).to(entry.dtype))
        yield values


def _checked(name: str, values: Tensor) -> Tensor:
    if values.is_floating_point() and not bool(values.isfinite().all()):
        raise AdapterMismatch(f"{name!r}: the folded weight holds values that are not finite")
    return values
