"""The golden vectors of mergekit, and our rules on the same deltas and masks."""

from __future__ import annotations

import json
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import torch
from safetensors import safe_open
from torch import Tensor

from fedmerge.rules import Draw, Stack, parse_rule

NEARLY_ONE = 1 - 2**-53
FILE = Path(__file__).with_name("mergekit.safetensors")


@dataclass(frozen=True)
class Golden:
    """One merge that mergekit did."""

    method: str
    inputs: str
    values: Tensor
    weights: list[float] | None
    knobs: dict[str, Any]
    result: Tensor
    masks: Tensor | None
    probabilities: Tensor | None

    def __str__(self) -> str:
        knobs = ", ".join(f"{name}={value}" for name, value in self.knobs.items())
        return f"{self.method}({knobs}) of {len(self.values)} {self.inputs}, weights {self.weights}"

    def merge(self, rule: str) -> Tensor:
        """Our rule on the same deltas, in the shape of the result."""
        clients = len(self.values)
        weights = torch.tensor(self.weights or [1.0] * clients, dtype=torch.float64)[:, None]
        silos = tuple(f"silo-{client}" for client in range(clients))
        draw = Recorded(0, 0, silos, "x", tuple(self.values.shape[1:]), given=self)
        return parse_rule(rule)(Stack(self.values.flatten(1), weights), draw).reshape(self.result.shape)


@dataclass(frozen=True)
class Recorded(Draw):
    """Numbers that give the recorded masks.

    Where probabilities differ by entry, only if ours are the recorded ones: a kept entry gets the largest
    number below its probability, a dropped one the probability itself, so that one that is larger or smaller
    by a bit gives another mask. Where all are the density, which mergekit rounds to float32, 0 or nearly 1.
    """

    given: Golden | None = None

    def uniform(self, count: int, device: torch.device | str = "cpu") -> Tensor:
        assert self.given is not None and self.given.masks is not None, "nothing was drawn"
        assert self.offset == 0 and count == self.given.masks.shape[1]
        probabilities = self.given.probabilities.to(torch.float64)
        if bool((probabilities == probabilities[0, 0]).all()):
            return (1 - self.given.masks.to(torch.float64)) * NEARLY_ONE
        below = torch.nextafter(probabilities, torch.zeros_like(probabilities))
        return torch.where(self.given.masks.bool(), below, probabilities)

    def uniform_row(self, client: int, count: int, device: torch.device | str = "cpu") -> Tensor:
        return self.uniform(count, device)[client]


def load() -> list[Golden]:
    with safe_open(FILE, "pt") as file:
        cases = json.loads(file.metadata()["golden"])["cases"]
        names = set(file.keys())

        def part(name: str) -> Tensor | None:
            return file.get_tensor(name) if name in names else None

        return [
            Golden(
                case["method"],
                case["inputs"],
                file.get_tensor(f"inputs/{case['inputs']}")[: case["clients"]],
                case["weights"],
                case["knobs"],
                file.get_tensor(f"{number}/result"),
                part(f"{number}/masks"),
                part(f"{number}/probabilities"),
            )
            for number, case in enumerate(cases)
        ]
