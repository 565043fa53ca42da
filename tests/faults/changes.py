"""What a bad silo makes of its answer."""

from __future__ import annotations

from collections.abc import Callable

import torch
from flwr.app import Array, ArrayRecord, RecordDict
from torch import Tensor

from fedmerge.wire.records import from_record, to_record
from tests.server.world import tensors

A = "base_model.model.q.lora_A.weight"
B = "base_model.model.q.lora_B.weight"
HEAD = "head.weight"
Change = Callable[[RecordDict], RecordDict]


def delta(content: RecordDict) -> dict[str, Tensor]:
    """What the silo would have sent."""
    return from_record(content["arrays"])


def sending(make: Callable[[dict[str, Tensor]], dict[str, Tensor]]) -> Change:
    """Sends what `make` makes of the good delta."""

    def change(content: RecordDict) -> RecordDict:
        content["arrays"] = to_record(make(delta(content)))
        return content

    return change


def replaced(name: str, value: Tensor) -> Change:
    """Sends another tensor under a name, old or new."""
    return sending(lambda good: {**good, name: value})


def element(value: float, name: str = A) -> Change:
    """Sends one wrong number."""

    def spoil(good: dict[str, Tensor]) -> dict[str, Tensor]:
        good[name].view(-1)[1] = value
        return good

    return sending(spoil)


def array(name: str = A, **fields: object) -> Change:
    """Sends an array with other fields: dtype, shape, stype, data."""

    def change(content: RecordDict) -> RecordDict:
        given = content["arrays"][name]
        kept = {key: getattr(given, key) for key in ("dtype", "shape", "stype", "data")}
        content["arrays"][name] = Array(**{**kept, **fields})
        return content

    return change


def records(arrays: ArrayRecord | None) -> Change:
    """Sends another record of tensors, or none."""

    def change(content: RecordDict) -> RecordDict:
        del content["arrays"]
        if arrays is not None:
            content["arrays"] = arrays
        return content

    return change


def good(name: str = A) -> Tensor:
    """A tensor as it should be."""
    return tensors(7)[name]


def full(value: float) -> Change:
    """Sends the same number everywhere."""
    return sending(lambda good: {name: torch.full_like(tensor, value) for name, tensor in good.items()})
