"""How deltas are rounded for the wire: "exact" not at all, "bf16" and "fp16" to half the bytes of float32.

Only deltas are rounded, never the broadcast: an error in the broadcast would add up over the rounds, while a
delta is small beside the adapter and its rounding error smaller still.
"""

from __future__ import annotations

from collections.abc import Mapping

import torch
from torch import Tensor

from fedmerge.errors import WireError, nearest

ENCODINGS: dict[str, torch.dtype | None] = {"exact": None, "bf16": torch.bfloat16, "fp16": torch.float16}


def wire_dtype(dtype: torch.dtype, encoding: str) -> torch.dtype:
    """The dtype in which a tensor of `dtype` travels under `encoding`; whole numbers stay what they are.

    Raises:
        WireError: no encoding of that name.

    Example:
        >>> wire_dtype(torch.float32, "bf16"), wire_dtype(torch.int64, "bf16")
        (torch.bfloat16, torch.int64)
    """
    if encoding not in ENCODINGS:
        raise WireError(f"no encoding {encoding!r}: {nearest(encoding, ENCODINGS)}")
    target = ENCODINGS[encoding]
    return target if target is not None and dtype.is_floating_point else dtype


def encode(tensors: Mapping[str, Tensor], encoding: str) -> dict[str, Tensor]:
    """The tensors as they travel.

    Raises:
        WireError: no encoding of that name, or a finite value is too large for it.
    """
    encoded: dict[str, Tensor] = {}
    for name, tensor in tensors.items():
        dtype = wire_dtype(tensor.dtype, encoding)
        encoded[name] = tensor.to(dtype)
        if dtype != tensor.dtype and not _same_finite(tensor, encoded[name]):
            largest = float(tensor[tensor.isfinite()].abs().max())
            raise WireError(
                f"{name!r} reaches {largest:.3g}, too large for wire.encoding {encoding!r}; use 'exact'"
            )
    return encoded


def encode_statistic(tensors: Mapping[str, Tensor]) -> dict[str, Tensor]:
    """A statistic as it travels: in float32, whatever the deltas travel in.

    Squares of gradients lie below what float16 can hold, and the inverse of a Gram matrix enlarges what
    bfloat16 rounds away.
    """
    return {name: tensor.to(torch.float32) for name, tensor in tensors.items()}


def _same_finite(before: Tensor, after: Tensor) -> bool:
    """Whether rounding made no finite value infinite (what was so before is the guard's business)."""
    return bool((before.isfinite() == after.isfinite()).all())
