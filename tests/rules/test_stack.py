from __future__ import annotations

import pytest
import torch

from fedmerge.errors import RuleError
from fedmerge.rules import Stack

ONES = torch.ones(2, 1, dtype=torch.float64)


@pytest.mark.parametrize(
    ("values", "weights", "sentence"),
    [
        (torch.zeros(4), ONES, r"floating \(clients, coordinates\).*shape \(4,\)"),
        (torch.zeros(0, 4), torch.ones(0, 1, dtype=torch.float64), "at least one client"),
        (torch.zeros(2, 4, dtype=torch.int64), ONES, "got torch.int64"),
        (torch.zeros(2, 2, 2), ONES, r"shape \(2, 2, 2\)"),
        (torch.zeros(2, 4), torch.ones(2, 1), r"weights are float64 \(2, 1\) or \(2, 4\), got torch.float32"),
        (torch.zeros(2, 4), torch.ones(3, 1, dtype=torch.float64), r"shape \(3, 1\)"),
        (torch.zeros(2, 4), ONES[:, 0], r"shape \(2,\)"),
        (torch.zeros(2, 4, device="meta"), ONES, "weights are on cpu, the values on meta"),
    ],
)
def test_refuses_what_does_not_fit(values: torch.Tensor, weights: torch.Tensor, sentence: str) -> None:
    with pytest.raises(RuleError, match=sentence):
        Stack(values, weights)


def test_columns_are_views() -> None:
    values, edited = torch.arange(8.0).reshape(2, 4), torch.ones(2, 4, dtype=torch.float64)
    part = Stack(values, edited).columns(1, 3)
    assert part.values.tolist() == [[1, 2], [5, 6]]
    assert part.weights.shape == (2, 2)
    assert part.values.untyped_storage().data_ptr() == values.untyped_storage().data_ptr()
    assert Stack(values, ONES).columns(1, 3).weights is ONES
