"""The value that everything else carries: named tensors with their LoRA settings."""

from __future__ import annotations

import math
from collections.abc import Mapping
from dataclasses import dataclass, field, replace

import torch
from torch import Tensor

from fedmerge.errors import AdapterMismatch, ConfigError


@dataclass(frozen=True)
class Lora:
    """LoRA settings: what turns a pair of factors into an update of a weight.

    The update is `scaling * B @ A`, with `scaling = alpha / rank`, or `alpha / sqrt(rank)` for rsLoRA.

    Args:
        rank: rows of A and columns of B, at least 1.
        alpha: numerator of the scaling, above 0.
        rslora: divide by the root of the rank.
        target_modules: the adapted modules' names, for information; the tensors' names decide.

    Raises:
        ConfigError: a rank below 1, or an alpha that is no number above 0.

    Example:
        >>> Lora(rank=16, alpha=32).scaling, Lora(rank=16, alpha=32, rslora=True).scaling
        (2.0, 8.0)

    Reference:
        Hu et al., LoRA: Low-Rank Adaptation of Large Language Models, 2021, arXiv 2106.09685.
        Kalajdzievski, A Rank Stabilization Scaling Factor for Fine-Tuning with LoRA, 2023, arXiv 2312.03732.
    """

    rank: int
    alpha: float
    rslora: bool = False
    target_modules: tuple[str, ...] = ()

    def __post_init__(self) -> None:
        if isinstance(self.rank, bool) or not isinstance(self.rank, int) or self.rank < 1:
            raise ConfigError(f"LoRA: rank is {self.rank!r}, expected a whole number from 1")
        number = isinstance(self.alpha, int | float) and not isinstance(self.alpha, bool)
        if not number or not math.isfinite(self.alpha) or self.alpha <= 0:
            raise ConfigError(f"LoRA: alpha is {self.alpha!r}, expected a finite number above 0")

    @property
    def scaling(self) -> float:
        """The factor of `B @ A` in the update (lora_scaling)."""
        return self.alpha / (math.sqrt(self.rank) if self.rslora else self.rank)

    def of_rank(self, rank: int) -> Lora:
        """The same scaling at another rank.

        Example:
            >>> Lora(rank=8, alpha=16).of_rank(4)
            Lora(rank=4, alpha=8.0, rslora=False, target_modules=())
        """
        if rank == self.rank:
            return self
        return replace(self, rank=rank, alpha=self.scaling * (math.sqrt(rank) if self.rslora else rank))


@dataclass(frozen=True, eq=False)
class Adapter:
    """What is trained, sent and merged: tensors by name.

    Args:
        tensors: name -> tensor, named as in PEFT's files: `<module>.lora_A.weight` (rank, inputs) and
            `<module>.lora_B.weight` (outputs, rank), and whatever else trains, such as `head.weight`.
        lora: settings of the LoRA pairs; None where there are none or they are not known.
        metadata: free strings that travel with the adapter, into its file and back.

    Raises:
        AdapterMismatch: a name that is no string, or a value that is no tensor.

    Example:
        >>> Adapter({"head.weight": torch.zeros(3, 4)})
        Adapter(1 tensors, 12 parameters, lora=None)
    """

    tensors: dict[str, Tensor]
    lora: Lora | None = None
    metadata: dict[str, str] = field(default_factory=dict)

    def __post_init__(self) -> None:
        if not isinstance(self.tensors, Mapping):
            raise AdapterMismatch(
                f"an adapter maps names to tensors; a {type(self.tensors).__name__} was given"
            )
        for name, tensor in self.tensors.items():
            if not isinstance(name, str):
                raise AdapterMismatch(f"a tensor's name is {name!r}, expected a string")
            if not isinstance(tensor, Tensor):
                raise AdapterMismatch(f"{name!r} is a {type(tensor).__name__}, expected a torch tensor")

    @property
    def parameters(self) -> int:
        """Number of values in all tensors."""
        return sum(tensor.numel() for tensor in self.tensors.values())

    def __repr__(self) -> str:
        return f"Adapter({len(self.tensors)} tensors, {self.parameters} parameters, lora={self.lora})"


def as_adapter(given: Adapter | Mapping[str, Tensor]) -> Adapter:
    """A plain dict of tensors as an adapter without LoRA settings."""
    return given if isinstance(given, Adapter) else Adapter(given)  # type: ignore[arg-type]


def working_dtype(*dtypes: torch.dtype) -> torch.dtype:
    """The dtype that values of these dtypes are merged in: float32, or float64 where that loses bits.

    Raises:
        AdapterMismatch: a dtype that has no arithmetic mean (bool, complex).

    Example:
        >>> working_dtype(torch.bfloat16), working_dtype(torch.float32, torch.int64)
        (torch.float32, torch.float64)
    """
    for dtype in dtypes:
        if dtype is torch.bool or dtype.is_complex:
            raise AdapterMismatch(f"tensors of {dtype} can't be merged, expected real numbers")
    exact_in_float32 = all(dtype.is_floating_point and dtype is not torch.float64 for dtype in dtypes)
    return torch.float32 if exact_in_float32 else torch.float64


def rounded(values: Tensor, dtype: torch.dtype) -> Tensor:
    """Values in `dtype`; whole numbers are rounded half to even, not cut off."""
    return values.to(dtype) if dtype.is_floating_point else values.round().to(dtype)
