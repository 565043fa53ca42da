"""A base's weights by the names that an adapter gives its modules, read from disk one at a time."""

from __future__ import annotations

from collections.abc import Callable
from pathlib import Path

from torch import Tensor

from fedmerge.checkpoints.whole_weights import place_in
from fedmerge.errors import WireError
from fedmerge.wire.checkpoint import Checkpoint, open_checkpoint


def base_weights(folder: Path) -> Callable[[str], Tensor | None] | None:
    """Weights of a base by module or tensor name; None where its files are no safetensors.

    Args:
        folder: the base's.
    """
    try:
        base = open_checkpoint(folder, fetch=False)
    except WireError:
        return None
    return lambda name: _read(base, name)


def _read(base: Checkpoint, name: str) -> Tensor | None:
    for candidate in (f"{name}.weight", name):
        place = place_in(base, candidate)
        if place is not None:
            return base.read(place).reshape(base.entries[place].shape)
    return None
