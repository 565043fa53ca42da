"""Which tensors of an adapter are LoRA pairs, and which stand by themselves."""

from __future__ import annotations

from collections.abc import Iterable, Mapping
from dataclasses import dataclass

from torch import Tensor

from fedmerge.errors import AdapterMismatch

A_SUFFIX = ".lora_A.weight"
B_SUFFIX = ".lora_B.weight"


@dataclass(frozen=True, order=True)
class Pair:
    """The two factors of one module's update: `scaling * B @ A`.

    Args:
        module: the module's name in the adapter, such as `base_model.model.layers.0.q_proj`.
    """

    module: str

    @property
    def a(self) -> str:
        """Name of A, (rank, inputs)."""
        return self.module + A_SUFFIX

    @property
    def b(self) -> str:
        """Name of B, (outputs, rank)."""
        return self.module + B_SUFFIX

    def factors(self, tensors: Mapping[str, Tensor]) -> tuple[Tensor, Tensor]:
        """A and B out of an adapter's tensors.

        Returns:
            A (rank, inputs) and B (outputs, rank).

        Raises:
            AdapterMismatch: they are no matrices, or their ranks differ.
        """
        a, b = tensors[self.a], tensors[self.b]
        if a.ndim != 2 or b.ndim != 2 or a.shape[0] != b.shape[1]:
            raise AdapterMismatch(
                f"{self.module!r}: A has shape {tuple(a.shape)} and B {tuple(b.shape)}, "
                "expected (rank, inputs) and (outputs, rank)"
            )
        return a, b


def split_names(names: Iterable[str]) -> tuple[tuple[Pair, ...], tuple[str, ...]]:
    """LoRA pairs, and the names of the other tensors, both sorted.

    Raises:
        AdapterMismatch: an A without its B, or a B without its A.

    Example:
        >>> split_names(["q.lora_B.weight", "head.bias", "q.lora_A.weight"])
        ((Pair(module='q'),), ('head.bias',))
    """
    known = set(names)
    modules = {
        name.removesuffix(suffix)
        for name in known
        for suffix in (A_SUFFIX, B_SUFFIX)
        if name.endswith(suffix)
    }
    pairs = tuple(Pair(module) for module in sorted(modules))
    for pair in pairs:
        for wanted, given in ((pair.a, pair.b), (pair.b, pair.a)):
            if wanted not in known:
                raise AdapterMismatch(f"{given!r} is there without its other factor {wanted!r}")
    return pairs, tuple(sorted(known - {name for pair in pairs for name in (pair.a, pair.b)}))
