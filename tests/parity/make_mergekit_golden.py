"""Write what mergekit 0.1.5 makes of a few small deltas: tests/parity/mergekit.safetensors.

mergekit's pins collide with those of this project, so it runs in an environment of its own:

    python -m venv mergekit-env
    mergekit-env/bin/pip install "mergekit==0.1.5"
    mergekit-env/bin/python tests/parity/make_mergekit_golden.py

The same file comes out bit for bit each time: the deltas are drawn from fixed seeds, and one thread adds up.
The base model is all zeros, so that what mergekit merges are the deltas themselves. Where a method draws
random masks, the masks and the probabilities that it drew them with are recorded, so that the arithmetic can
be compared bit for bit although the generators differ.
"""

from __future__ import annotations

import importlib.metadata
import json
from pathlib import Path

import torch
from safetensors.torch import save_file

TARGET = Path(__file__).with_name("mergekit.safetensors")
WEIGHTS = {
    "equal": [1.0, 1.0, 1.0, 1.0],
    "shares": [0.4, 0.3, 0.2, 0.1],
    "examples": [1300.0, 17.0, 250.0, 999.0],
}


def deltas() -> dict[str, torch.Tensor]:
    """Of distinct magnitudes, `(clients, *shape)`."""
    draw = torch.Generator().manual_seed(0)
    opposed = torch.tensor([[2.0, -1.0, 0.5, 0.0], [-2.0, -1.5, 0.25, 3.0], [0.0, 4.0, -0.75, 0.0]])
    matrix = torch.randn(4, 9, 23, generator=draw)
    return {
        "matrix": matrix,
        "vector": torch.randn(4, 37, generator=draw),
        "small": 1e-4 * torch.randn(4, 6, 10, generator=draw),
        "alike": torch.randn(1, 9, 23, generator=draw) + 0.3 * matrix,
        "opposed": torch.cat([opposed, torch.tensor([[0.0, -1.5, 0.0, -3.0]])]),
        "few": torch.tensor([[3.0], [1.0], [-2.0], [0.5]]),
    }


def cases() -> list[dict[str, object]]:
    """What is merged: method, name of the deltas, weights, parameters."""
    found: list[dict[str, object]] = []

    def add(
        method: str, inputs: str, weights: str | None = "equal", clients: int = 4, **knobs: object
    ) -> None:
        given = None if weights is None else WEIGHTS[weights][:clients]
        found.append(
            {"method": method, "inputs": inputs, "weights": given, "clients": clients, "knobs": knobs}
        )

    for weights in WEIGHTS:
        for inputs in ("matrix", "vector", "opposed"):
            add("linear", inputs, weights)
            add("task_arithmetic", inputs, weights)
            add("ties", inputs, weights, density=1.0)
        for density in (0.1, 0.2, 0.5, 0.9):
            add("ties", "matrix", weights, density=density)
        for density in (0.5, 0.3):
            for method in ("dare_linear", "dare_ties"):
                add(method, "matrix", weights, density=density)
                add(method, "vector", weights, density=density)
            for method in ("della", "della_linear"):
                add(method, "matrix", weights, density=density, epsilon=0.15)
                add(method, "vector", weights, density=density, epsilon=0.05)
        for method in ("breadcrumbs", "breadcrumbs_ties"):
            add(method, "matrix", weights, density=0.9, gamma=0.01)
            add(method, "vector", weights, density=0.4, gamma=0.3)
        add("nuslerp", "matrix", weights, clients=2)
        add("nuslerp", "alike", weights, clients=2)
        add("multislerp", "matrix", weights)
        add("multislerp", "alike", weights)
    add("ties", "few", density=0.2)
    add("ties", "matrix", "shares", density=0.2, **{"lambda": 0.3})
    add("dare_linear", "small", "shares", density=0.5)
    add("breadcrumbs", "few", density=0.9, gamma=0.01)
    for density in (1.0, 0.5, 0.29):
        add("sce", "matrix", None, select_topk=density)
        add("sce", "small", None, select_topk=density)
    add("sce", "opposed", None)
    for inputs in ("matrix", "alike"):
        add("model_stock", inputs, None)
        add("model_stock", inputs, None, clients=3)
        add("karcher", inputs, None)
        add("karcher", inputs, None, clients=2)
        for share in (0.5, 0.25):
            add("slerp", inputs, None, clients=2, t=share)
        add("ram", inputs, None, epsilon=0.5)
        add("ramplus_tl", inputs, None, epsilon=0.5, r=0.1, alpha=0.2)
    return found


def merge(case: dict, values: torch.Tensor) -> dict[str, torch.Tensor]:
    """The result, and the masks and probabilities of what was drawn."""
    drawn: dict[str, list[torch.Tensor]] = {"masks": [], "probabilities": []}
    original = torch.bernoulli

    def record(probabilities: torch.Tensor) -> torch.Tensor:
        mask = original(probabilities)
        drawn["masks"].append(mask.to(torch.uint8).flatten())
        drawn["probabilities"].append(probabilities.flatten())
        return mask

    torch.manual_seed(1)
    torch.bernoulli = record
    try:
        result = called(case, list(values))
    finally:
        torch.bernoulli = original
    found = {"result": result.contiguous()}
    return found | {name: torch.stack(parts) for name, parts in drawn.items() if parts}


def called(case: dict, tensors: list[torch.Tensor]) -> torch.Tensor:
    """mergekit on these tensors; all its methods but three get a base of zeros."""
    from mergekit.merge_methods.api import merge_tensors

    parameters = dict(case["knobs"])
    if case["weights"] is not None:
        parameters["weight"] = case["weights"]
    if case["method"] in ("linear", "karcher"):
        return merge_tensors(tensors, case["method"], parameters=parameters)
    if case["method"] == "slerp":
        return merge_tensors(tensors, "slerp", parameters=parameters, base_index=0)
    base = torch.zeros_like(tensors[0])
    return merge_tensors([base, *tensors], case["method"], parameters=parameters, base_index=0)


def main() -> None:
    """Write the file."""
    torch.set_num_threads(1)
    version = importlib.metadata.version("mergekit")
    assert version == "0.1.5", f"mergekit {version} is installed, the golden vectors are those of 0.1.5"
    inputs, made = deltas(), cases()
    tensors = {f"inputs/{name}": values for name, values in inputs.items()}
    for number, case in enumerate(made):
        found = merge(case, inputs[case["inputs"]][: case["clients"]])
        tensors |= {f"{number}/{name}": tensor for name, tensor in found.items()}
    notes = {"mergekit": version, "torch": torch.__version__, "cases": made}
    # One key alone: several would stand in the file in the order of a hash table, another each time.
    save_file(tensors, TARGET, metadata={"golden": json.dumps(notes)})
    print(f"{TARGET}: {len(made)} cases, {TARGET.stat().st_size / 1000:.0f} kB")


if __name__ == "__main__":
    main()
