"""Against mergekit's own numbers (scripts/golden_sparse.py made them), with equal weights."""

from __future__ import annotations

import json
from pathlib import Path
from typing import Any

import pytest
import torch

from fedmerge.adapters.merge import merge

GOLDEN: dict[str, Any] = json.loads(
    (Path(__file__).parent / "golden_sparse.json").read_text(encoding="utf-8")
)
NAMES = [f"silo-{client}" for client in range(4)]


def merged(kind: str, rule: str) -> torch.Tensor:
    deltas = [{"x": torch.tensor(row).reshape(GOLDEN["shape"])} for row in GOLDEN[kind]]
    return merge(deltas, names=NAMES, rule=rule).adapter.tensors["x"].flatten()


@pytest.mark.parametrize(
    ("kind", "rule"), [(kind, rule) for kind in ("deltas", "sparse") for rule in GOLDEN[f"of {kind}"]]
)
def test_equals_mergekit(kind: str, rule: str) -> None:
    wanted = torch.tensor(GOLDEN[f"of {kind}"][rule])
    result = merged(kind, rule)
    assert torch.equal(result != 0, wanted != 0)
    torch.testing.assert_close(result, wanted, rtol=2e-6, atol=1e-7)  # mergekit adds up in float32


def test_breadcrumbs_of_one_client_leaves_its_entries_as_they_are() -> None:
    alone = merge([{"x": torch.tensor(GOLDEN["deltas"][0])}], rule="breadcrumbs(density=0.6, gamma=0.1)")
    kept = alone.adapter.tensors["x"]
    given = torch.tensor(GOLDEN["deltas"][0])
    assert torch.equal(kept[kept != 0], given[kept != 0])
    assert int((kept != 0).sum()) == 36


def test_della_keeps_what_mergekit_keeps_on_the_same_dice() -> None:
    kept = torch.tensor(GOLDEN["kept by della(density=0.5, epsilon=0.3)"])
    shape = GOLDEN["shape"]
    for client, name in enumerate(NAMES):
        delta = {"x": torch.tensor(GOLDEN["deltas"][client]).reshape(shape)}
        alone = merge([delta], names=[name], rule="della_linear(density=0.5, epsilon=0.3)")
        assert torch.equal(alone.adapter.tensors["x"].flatten() != 0, kept[client].bool())


def test_della_rescales_by_each_entry_s_own_probability_where_mergekit_keeps_the_norm() -> None:
    """mergekit scales what is left to the former L1 norm, or not at all; the paper divides by p."""
    delta = {"x": torch.tensor(GOLDEN["deltas"][0]).reshape(GOLDEN["shape"])}
    result = merge([delta], names=["silo-0"], rule="della_linear(density=0.5, epsilon=0.3)").adapter.tensors[
        "x"
    ]
    ratio = (result / delta["x"])[result != 0]
    assert ratio.min() == pytest.approx(1 / 0.8, abs=0.01)
    assert ratio.max() <= 1 / 0.2 + 1e-5
    assert len(ratio.unique()) > 2
