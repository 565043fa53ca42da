"""Make tests/rules/golden_sparse.json: what mergekit 0.1.5 makes of one set of deltas.

Run in an environment of mergekit's own, whose pins collide with ours:

    PYTHONPATH=. python scripts/golden_sparse.py

Deltas are float32 with distinct magnitudes; some entries are 0, as the deltas of reinforcement learning are.
Masks of DELLA are drawn from fedmerge's own uniform numbers, so that both packages throw the same dice.
"""

from __future__ import annotations

import json
from importlib.metadata import version
from pathlib import Path
from unittest.mock import patch

import torch
from mergekit import sparsify
from mergekit.merge_methods import ram, sce
from mergekit.merge_methods.base import TensorGroup
from mergekit.merge_methods.generalized_task_arithmetic import get_mask

from fedmerge.rules import Draw

CLIENTS, SHAPE = 4, (6, 10)
OUTPUT = Path(__file__).parents[1] / "tests" / "rules" / "golden_sparse.json"


def main() -> None:
    generator = torch.Generator().manual_seed(7)
    deltas = torch.randn(CLIENTS, *SHAPE, generator=generator)
    sparse = deltas * (torch.rand(deltas.shape, generator=generator) < 0.5)
    group, sparse_group = _group(deltas), _group(sparse)
    crumbs = torch.stack([sparsify.magnitude_outliers(d.clone(), density=0.6, gamma=0.1) for d in deltas])
    results = {
        "breadcrumbs(density=0.6, gamma=0.1)": crumbs.sum(dim=0),
        "breadcrumbs_ties(density=0.6, gamma=0.1)": (crumbs * get_mask(crumbs, method="sum")).sum(dim=0),
        "sce(density=1.0)": sce.sce_merge.implementation(group, select_topk=1.0),
        "sce(density=0.3)": sce.sce_merge.implementation(group, select_topk=0.3),
    }
    sparse_results = {
        "ram(threshold=1e-05, rate=0.0, limit=0.2)": ram.ram_merge.implementation(sparse_group),
        "ram(threshold=1e-05, rate=0.1, limit=0.2)": ram.ramplus_tl_merge.implementation(sparse_group),
    }
    golden = {
        "mergekit": version("mergekit"),
        "torch": torch.__version__,
        "shape": list(SHAPE),
        "deltas": deltas.flatten(1).tolist(),
        "sparse": sparse.flatten(1).tolist(),
        "of deltas": {rule: result.flatten().tolist() for rule, result in results.items()},
        "of sparse": {rule: result.flatten().tolist() for rule, result in sparse_results.items()},
        "kept by della(density=0.5, epsilon=0.3)": _della(deltas, 0.5, 0.3).flatten(1).int().tolist(),
    }
    OUTPUT.write_text(json.dumps(golden, indent=0) + "\n", encoding="utf-8")
    print(f"{OUTPUT}: mergekit {golden['mergekit']}, torch {golden['torch']}")


def _group(deltas: torch.Tensor) -> TensorGroup:
    return TensorGroup.from_tensors([torch.zeros(SHAPE), *deltas], base_index=0)


def _della(deltas: torch.Tensor, density: float, epsilon: float) -> torch.Tensor:
    """Which entries are kept: bool, as the deltas."""
    silos = tuple(f"silo-{client}" for client in range(CLIENTS))
    uniform = Draw(0, 0, silos, "x", SHAPE).uniform(SHAPE[0] * SHAPE[1]).reshape(CLIENTS, *SHAPE)
    kept = []
    for client, delta in enumerate(deltas):
        with patch.object(torch, "bernoulli", lambda chance, row=uniform[client]: (row < chance).float()):
            kept.append(sparsify.della_magprune(delta.clone(), density, epsilon) != 0)
    return torch.stack(kept)


if __name__ == "__main__":
    main()
