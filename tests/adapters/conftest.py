"""Random adapters, and the dense oracle of a product merge in plain numpy."""

from __future__ import annotations

from collections.abc import Callable, Sequence

import numpy as np
import pytest
import torch

from fedmerge.adapters.adapter import Adapter, Lora

MODULES = ("base_model.model.layers.0.q_proj", "base_model.model.layers.1.v_proj")


@pytest.fixture(scope="session")
def make() -> Callable[..., Adapter]:
    """make(seed, rank=..., zero_b=..., scale=...): two LoRA pairs of different shapes and a head."""

    def make_adapter(
        seed: int,
        *,
        lora: Lora | None = None,
        zero_b: bool = False,
        scale: float = 1.0,
        dtype: torch.dtype = torch.float32,
        head: bool = True,
    ) -> Adapter:
        lora = lora or Lora(rank=3, alpha=6)
        generator = torch.Generator().manual_seed(seed)
        tensors = {}
        for module, (outputs, inputs) in zip(MODULES, ((10, 12), (9, 7)), strict=True):
            a = torch.randn(lora.rank, inputs, generator=generator, dtype=torch.float64)
            b = torch.randn(outputs, lora.rank, generator=generator, dtype=torch.float64)
            tensors[f"{module}.lora_A.weight"] = (scale * a).to(dtype)
            tensors[f"{module}.lora_B.weight"] = (scale * (0 if zero_b else 1) * b).to(dtype)
        if head:
            tensors["head.weight"] = (scale * torch.randn(4, 5, generator=generator)).to(dtype)
        return Adapter(tensors, lora)

    return make_adapter


@pytest.fixture(scope="session")
def dense() -> Callable[..., dict[str, np.ndarray]]:
    """dense(adapter): each module's update `scaling * B @ A`, float64."""

    def products(adapter: Adapter, *, plus: Adapter | None = None) -> dict[str, np.ndarray]:
        assert adapter.lora is not None
        tensors = {
            name: tensor.double() + (plus.tensors[name].double() if plus else 0)
            for name, tensor in adapter.tensors.items()
        }
        return {
            module: (
                adapter.lora.scaling * tensors[f"{module}.lora_B.weight"] @ tensors[f"{module}.lora_A.weight"]
            ).numpy()
            for module in MODULES
        }

    return products


@pytest.fixture(scope="session")
def truncated() -> Callable[[np.ndarray, int], np.ndarray]:
    """The best rank-k approximation, by numpy."""

    def truncate(matrix: np.ndarray, rank: int) -> np.ndarray:
        u, s, vh = np.linalg.svd(matrix, full_matrices=False)
        return (u[:, :rank] * s[:rank]) @ vh[:rank]

    return truncate


@pytest.fixture(scope="session")
def same_bits() -> Callable[[Adapter, Adapter], bool]:
    """Whether two adapters are the same, bit for bit."""

    def same(one: Adapter, two: Adapter) -> bool:
        names: Sequence[str] = list(one.tensors)
        return names == list(two.tensors) and all(
            one.tensors[name].dtype == two.tensors[name].dtype
            and torch.equal(one.tensors[name], two.tensors[name])
            for name in names
        )

    return same
