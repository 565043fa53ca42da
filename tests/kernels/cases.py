"""Inputs ugly enough for any kernel, and what the composition of stages makes of them."""

from __future__ import annotations

import numpy as np
import torch
from torch import Tensor

from fedmerge.rules import Draw, Stack, parse_rule
from fedmerge.rules.randomness import stream_key

RULES = [
    "fedavg()",
    "uniform()",
    "task_arithmetic(scale=0.3)",
    "chain(total(), scale(0.3), scale(1.7))",
    "ties(density=0.2)",
    "ties(density=0.7, scale=0.3)",
    "ties(density=1.0)",
    "dare(density=0.3)",
    "dare(density=0.999, scale=3.0)",
    "dare_ties(density=0.4)",
    "chain(equal_weights(), keep_largest(density=0.4), elect_sign(), mean())",
    "chain(keep_largest(density=0.1), total())",
    "chain(elect_sign(), mean())",
]
KINDS = ["normal", "ties", "denormal", "wide", "zeros"]


def keys(tensors: int, clients: int) -> np.ndarray:
    """The random streams of `silo-0`, ... and `tensor-0`, ..."""
    return np.array(
        [
            [stream_key(5, 2, f"silo-{client}", f"tensor-{place}") for client in range(clients)]
            for place in range(tensors)
        ],
        dtype=np.int64,
    )


def plain(rule: str, tensors: list[Tensor], weights: Tensor) -> list[Tensor]:
    """By the stages; each tensor is (clients, coordinates)."""
    silos = tuple(f"silo-{client}" for client in range(len(weights)))
    return [
        parse_rule(rule)(
            Stack(tensor.float(), weights[:, None]),
            Draw(5, 2, silos, f"tensor-{place}", (tensor.shape[1],)),
        )
        for place, tensor in enumerate(tensors)
    ]


def same_bits(one: list[Tensor], two: list[Tensor]) -> bool:
    return all(torch.equal(a.view(torch.int32), b.view(torch.int32)) for a, b in zip(one, two, strict=True))


def numbers(shape: tuple[int, int], kind: str, seed: int) -> Tensor:
    generator = torch.Generator().manual_seed(seed)
    normal = torch.randn(shape, generator=generator)
    if kind == "ties":
        return (normal * 2).round() / 4
    if kind == "denormal":
        return normal * 1e-40
    if kind == "wide":
        return normal * 10.0 ** torch.randint(-30, 30, shape, generator=generator)
    if kind == "zeros":
        return torch.where(normal.abs() > 1.2, normal, torch.where(normal > 0, 0.0, -0.0))
    return normal
