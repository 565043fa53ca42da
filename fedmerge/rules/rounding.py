"""From float64 to the dtype of the values, with one rounding."""

from __future__ import annotations

import torch
from torch import Tensor


def round_once(values: Tensor, dtype: torch.dtype) -> Tensor:
    """Round float64 to a dtype, once.

    torch goes from float64 to the 16-bit types by way of float32, and rounds twice. Rounding to odd on the
    way makes the second rounding see what the first one lost.

    Args:
        values: any shape.
        dtype: floating.

    Returns:
        The nearest values of that dtype, ties to even.

    Example:
        >>> value = torch.tensor([1 + 2**-9 + 2**-40], dtype=torch.float64)
        >>> round_once(value, torch.bfloat16) == value.to(torch.bfloat16)
        tensor([True])
        >>> value = torch.tensor([1 + 2**-8 + 2**-40], dtype=torch.float64)
        >>> round_once(value, torch.bfloat16) > value.to(torch.bfloat16)
        tensor([True])
    """
    if values.dtype != torch.float64 or dtype not in (torch.bfloat16, torch.float16):
        return values.to(dtype)
    single = values.to(torch.float32)
    back = single.to(torch.float64)
    bits = single.view(torch.int32) - (back.abs() > values.abs()).to(torch.int32)
    return (bits | (back != values).to(torch.int32)).view(torch.float32).to(dtype)
