"""Names for deltas that have none, out of their contents: the order in which they are given can't matter."""

from __future__ import annotations

import hashlib
from collections import Counter
from collections.abc import Sequence

import torch

from fedmerge.adapters.adapter import Adapter

SAMPLE = 1024
"""Values of each tensor that a name reads first; to read 8 x 40 M values costs more than their mean."""


def content_names(deltas: Sequence[Adapter]) -> tuple[str, ...]:
    """A name for each delta out of its values; equal deltas, and in practice only those, have equal names.

    Deltas whose samples agree are read whole.

    Example:
        >>> one, two = Adapter({"x": torch.ones(2)}), Adapter({"x": torch.zeros(2)})
        >>> names = content_names([one, two, one])
        >>> names[0] == names[2] != names[1], names[::-1] == content_names([one, two, one])
        (True, True)
    """
    names = [_digest(delta, SAMPLE) for delta in deltas]
    shared = Counter(names)
    return tuple(
        name if shared[name] == 1 else _digest(delta, None) for name, delta in zip(names, deltas, strict=True)
    )


def _digest(delta: Adapter, sample: int | None) -> str:
    state = hashlib.sha256()
    for name in sorted(delta.tensors):
        tensor = delta.tensors[name].detach().reshape(-1)
        stride = 1 if sample is None else max(1, tensor.numel() // sample)
        state.update(f"{name} {tensor.dtype} {tuple(delta.tensors[name].shape)}\n".encode())
        state.update(tensor[::stride].cpu().contiguous().view(torch.uint8).numpy().tobytes())
    return state.hexdigest()[:16]
