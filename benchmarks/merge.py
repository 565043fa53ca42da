"""Merging speed and memory beside PEFT, mergekit and Flower, in one run on the same tensors.

    python benchmarks/merge.py --mergekit-python ITS/ENVIRONMENT/bin/python [--small] [--json out.json]

Each measurement runs in a process of its own, with one thread unless it says two: it draws the deltas (the
same numbers for all, seeded), merges once unmeasured (imports, compilation, page tables), then `--repeats`
times. *CPU seconds* are those of the whole process during a merge. *Memory* is the peak resident size during
a merge above what was resident before it, inputs included there.

The deltas: rank 16 on all seven projections of a 7B Llama's 32 layers, 448 tensors, 40 M float32 values, from
8 clients; normal, each tensor with a scale of its own. Density 0.2, equal weights.

What is run, on lists of tensors that lie in memory:

- fedmerge: `fedmerge.merge(deltas, names=...)` as a user calls it, checks and report included;
  `finite=True` as in a round, where the guard has looked for NaN before, is told beside it.
- PEFT: `task_arithmetic`, `ties`, `dare_linear`, `dare_ties` of `peft.utils.merge_utils`, tensor by tensor:
  what `add_weighted_adapter` spends its time on, without its bookkeeping.
- mergekit: `merge_group` of its registered methods, tensor by tensor, with a base of zeros; it has
  no merging of adapters, so this is its arithmetic without reading and writing files.
- Flower: `aggregate_arrayrecords` on `ArrayRecord`s that lie in memory, as its FedAvg does.

*Trivial baseline*: `torch` summing all inputs once, one read of them.
"""

from __future__ import annotations

import argparse
import ctypes
import gc
import json
import os
import platform
import resource
import statistics
import subprocess
import sys
import time
from collections.abc import Callable, Iterator
from importlib.metadata import version
from pathlib import Path
from typing import Any

import torch
from torch import Tensor

CLIENTS = 8
DENSITY = 0.2
RANK = 16
HIDDEN, INNER, LAYERS = 4096, 11008, 32
MODULES = {
    "q_proj": (HIDDEN, HIDDEN),
    "k_proj": (HIDDEN, HIDDEN),
    "v_proj": (HIDDEN, HIDDEN),
    "o_proj": (HIDDEN, HIDDEN),
    "gate_proj": (HIDDEN, INNER),
    "up_proj": (HIDDEN, INNER),
    "down_proj": (INNER, HIDDEN),
}
RULES = {
    "mean": "fedavg()",
    "ties": f"ties(density={DENSITY})",
    "dare": f"dare(density={DENSITY})",
    "dare_ties": f"dare_ties(density={DENSITY})",
}
TARGETS = {
    ("mean", "flower"): 3,
    ("ties", "peft"): 12,
    ("ties", "mergekit"): 30,
    ("dare", "peft"): 4,
    ("dare", "mergekit"): 4,
    ("dare_ties", "peft"): 7,
    ("dare_ties", "mergekit"): 7,
}
"""How many times a peer's CPU seconds ours must fit in."""

Merge = Callable[[], object]


def shapes(layers: int) -> dict[str, tuple[int, int]]:
    """Names and shapes of the adapter's tensors."""
    found = {}
    for layer in range(layers):
        for module, (inputs, outputs) in MODULES.items():
            name = f"base_model.model.model.layers.{layer}.{module}"
            found[f"{name}.lora_A.weight"] = (RANK, inputs)
            found[f"{name}.lora_B.weight"] = (outputs, RANK)
    return found


def deltas(layers: int) -> list[dict[str, Tensor]]:
    """What each client sent; every tensor has a scale of its own."""
    scales = torch.rand(len(shapes(layers)), generator=torch.Generator().manual_seed(99)) * 1e-2
    made = []
    for client in range(CLIENTS):
        generator = torch.Generator().manual_seed(client)
        made.append(
            {
                name: torch.randn(shape, generator=generator) * scale
                for (name, shape), scale in zip(shapes(layers).items(), scales, strict=True)
            }
        )
    return made


def of_read(rule: str, given: list[dict[str, Tensor]]) -> Merge:
    """The trivial baseline."""
    return lambda: sum(float(tensor.sum()) for delta in given for tensor in delta.values())


def of_fedmerge(rule: str, given: list[dict[str, Tensor]], *, finite: bool = False) -> Merge:
    import fedmerge

    names = [f"silo-{client}" for client in range(CLIENTS)]
    return lambda: fedmerge.merge(given, rule=RULES[rule], names=names, finite=finite)


def of_fedmerge_in_a_round(rule: str, given: list[dict[str, Tensor]]) -> Merge:
    return of_fedmerge(rule, given, finite=True)


def of_peft(rule: str, given: list[dict[str, Tensor]]) -> Merge:
    from peft.utils import merge_utils

    weights = torch.full((CLIENTS,), 1 / CLIENTS)
    functions = {
        "mean": merge_utils.task_arithmetic,
        "ties": merge_utils.ties,
        "dare": merge_utils.dare_linear,
        "dare_ties": merge_utils.dare_ties,
    }
    density = () if rule == "mean" else (DENSITY,)
    merge = functions[rule]
    return lambda: {name: merge([delta[name] for delta in given], weights, *density) for name in given[0]}


def of_mergekit(rule: str, given: list[dict[str, Tensor]]) -> Merge:
    from mergekit.merge_methods import registry
    from mergekit.merge_methods.base import TensorGroup

    called = {"mean": "task_arithmetic", "dare": "dare_linear"}.get(rule, rule)
    method = registry.get(called)
    spec = {parameter.name: parameter for parameter in method.spec.parameters}
    everyone = range(1, CLIENTS + 1)
    knobs: dict[str, Any] = {name: parameter.default for name, parameter in spec.items()}
    knobs["weight"] = dict.fromkeys(everyone, 1 / CLIENTS)
    knobs["density"] = dict.fromkeys(everyone, 1.0 if rule == "mean" else DENSITY)

    def one(name: str) -> Tensor:
        tensors = [delta[name] for delta in given]
        group = TensorGroup.from_tensors([torch.zeros_like(tensors[0]), *tensors], base_index=0)
        merged: Tensor = method.merge_group(group, **knobs)
        return merged

    return lambda: {name: one(name) for name in given[0]}


def of_flower(rule: str, given: list[dict[str, Tensor]]) -> Merge:
    from flwr.app import ArrayRecord, MetricRecord, RecordDict
    from flwr.serverapp.strategy.strategy_utils import aggregate_arrayrecords

    records = [
        RecordDict({"arrays": ArrayRecord(delta), "metrics": MetricRecord({"num-examples": 1.0})})
        for delta in given
    ]
    given.clear()  # the records hold bytes of their own
    return lambda: aggregate_arrayrecords(records, "num-examples")


PEERS: dict[str, Callable[[str, list[dict[str, Tensor]]], Merge]] = {
    "read": of_read,
    "fedmerge": of_fedmerge,
    "fedmerge in a round": of_fedmerge_in_a_round,
    "peft": of_peft,
    "mergekit": of_mergekit,
    "flower": of_flower,
}
RUNS = [
    ("read", "mean"),
    *[(peer, rule) for rule in RULES for peer in ("fedmerge", "fedmerge in a round", "peft", "mergekit")],
    ("flower", "mean"),
]


def resident(field: str) -> float:
    """MB of this process: VmRSS now, VmHWM at most."""
    for line in Path("/proc/self/status").read_text().splitlines():
        if line.startswith(field):
            return int(line.split()[1]) / 1024
    raise LookupError(field)


def resident_without_leftovers() -> float:
    """MB, once what the last merge freed is given back: else its pages would hide what the next one needs.

    Garbage is collected here, too: looking at all that was imported takes 0.1 s, in whichever merge it falls.
    """
    gc.collect()
    ctypes.CDLL(None).malloc_trim(0)
    return resident("VmRSS")


def measure(merge: Merge, repeats: int) -> dict[str, Any]:
    """CPU and wall seconds of each repeat, and the peak memory above the inputs."""
    merge()
    cpu, wall, peaks = [], [], []
    for _ in range(repeats):
        before = resident_without_leftovers()
        Path("/proc/self/clear_refs").write_text("5")  # the peak starts again
        began, spent = time.perf_counter(), resource.getrusage(resource.RUSAGE_SELF)
        result = merge()
        now = resource.getrusage(resource.RUSAGE_SELF)
        wall.append(time.perf_counter() - began)
        cpu.append(now.ru_utime + now.ru_stime - spent.ru_utime - spent.ru_stime)
        peaks.append(resident("VmHWM") - before)
        del result
    return {"cpu": cpu, "wall": wall, "memory": max(peaks)}


def measure_layer(repeats: int) -> dict[str, Any]:
    """One 4096 x 4096 layer in product space: 8 clients of rank 16 that started from one adapter."""
    import fedmerge

    generator = torch.Generator().manual_seed(0)
    shape = {"q.lora_A.weight": (RANK, HIDDEN), "q.lora_B.weight": (HIDDEN, RANK)}

    def adapter(scale: float) -> fedmerge.Adapter:
        tensors = {name: torch.randn(size, generator=generator) * scale / 64 for name, size in shape.items()}
        return fedmerge.Adapter(tensors, fedmerge.Lora(rank=RANK, alpha=2 * RANK))

    received, sent = adapter(1.0), [adapter(0.1) for _ in range(CLIENTS)]
    names = [f"silo-{client}" for client in range(CLIENTS)]
    return measure(
        lambda: fedmerge.merge(sent, received=received, space="product()", names=names, finite=True), repeats
    )


def measure_dense(repeats: int) -> dict[str, Any]:
    """The same layer as PEFT's `svd` combination does it: dense products, dense SVD."""
    generator = torch.Generator().manual_seed(0)
    factors = [
        (torch.randn(HIDDEN, RANK, generator=generator), torch.randn(RANK, HIDDEN, generator=generator))
        for _ in range(CLIENTS)
    ]

    def merge() -> Tensor:
        dense = torch.stack([b @ a for b, a in factors]).mean(dim=0)
        left, values, right = torch.linalg.svd(dense)
        return (left[:, :RANK] * values[:RANK]) @ right[:RANK]

    return measure(merge, repeats)


def child(arguments: argparse.Namespace) -> None:
    """Measure one thing, and print it."""
    torch.set_num_threads(arguments.threads)
    peer, rule = arguments.measure
    if peer == "layer":
        found = measure_layer(arguments.repeats)
    elif peer == "dense":
        found = measure_dense(1)
    else:
        found = measure(PEERS[peer](rule, deltas(arguments.layers)), arguments.repeats)
    print(json.dumps(found))


def run(arguments: argparse.Namespace, peer: str, rule: str, threads: int = 1) -> dict[str, Any] | None:
    """Measure in a process of its own; None where the peer's environment is not given."""
    python = arguments.mergekit_python if peer == "mergekit" else sys.executable
    if not python:
        return None
    command = [python, __file__, "--measure", peer, rule, "--threads", str(threads)]
    command += ["--layers", str(arguments.layers), "--repeats", str(arguments.repeats)]
    environment = {**os.environ, "OMP_NUM_THREADS": str(threads), "OMP_WAIT_POLICY": "passive"}
    done = subprocess.run(command, env=environment, capture_output=True, text=True, check=False)
    if done.returncode:
        raise SystemExit(f"{peer}, {rule}: {done.stderr}")
    found: dict[str, Any] = json.loads(done.stdout.splitlines()[-1])
    return {"peer": peer, "rule": rule, "threads": threads, **found}


def results(arguments: argparse.Namespace) -> Iterator[dict[str, Any]]:
    """Every measurement, one after the other."""
    for peer, rule in RUNS:
        yield from filter(None, [run(arguments, peer, rule)])
    for rule in RULES:
        yield from filter(None, [run(arguments, "fedmerge in a round", rule, threads=2)])
    yield from filter(None, [run(arguments, "layer", "mean")])
    if not arguments.small:
        yield from filter(None, [run(arguments, "dense", "mean")])


def line(found: dict[str, Any], all_found: list[dict[str, Any]]) -> str:
    """One row of the table."""
    cpu, wall = statistics.median(found["cpu"]), statistics.median(found["wall"])
    spread = f"({min(found['cpu']):.3f} to {max(found['cpu']):.3f})"
    ours = next(
        (
            statistics.median(other["cpu"])
            for other in all_found
            if (other["peer"], other["rule"], other["threads"]) == ("fedmerge", found["rule"], 1)
        ),
        None,
    )
    ratio = "" if ours is None or found["peer"] in ("layer", "dense") else f"{cpu / ours:6.2f} x ours"
    target = TARGETS.get((found["rule"], found["peer"]))
    verdict = (
        ""
        if target is None or ours is None
        else f"asked {target}: {'met' if cpu / ours >= target else 'NOT MET'}"
    )
    return (
        f"{found['rule']:10} {found['peer']:20} {found['threads']} thread  CPU {cpu:7.3f} s {spread:20} "
        f"wall {wall:7.3f} s  memory {found['memory']:6.0f} MB  {ratio:14} {verdict}"
    )


def options() -> argparse.Namespace:
    parser = argparse.ArgumentParser(
        description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter
    )
    parser.add_argument("--mergekit-python", default="", help="interpreter of mergekit's environment")
    parser.add_argument("--repeats", type=int, default=5)
    parser.add_argument("--layers", type=int, default=LAYERS)
    parser.add_argument("--small", action="store_true", help="one layer, two repeats: does it run at all")
    parser.add_argument("--json", type=Path, help="where to write every measurement")
    parser.add_argument("--measure", nargs=2, metavar=("PEER", "RULE"), help=argparse.SUPPRESS)
    parser.add_argument("--threads", type=int, default=1, help=argparse.SUPPRESS)
    given = parser.parse_args()
    if given.small:
        given.layers, given.repeats = 1, 2
    return given


def main() -> None:
    arguments = options()
    if arguments.measure:
        child(arguments)
        return
    parameters = sum(a * b for a, b in shapes(arguments.layers).values())
    print(
        f"{CLIENTS} clients, {len(shapes(arguments.layers))} tensors, {parameters / 1e6:.1f} M values each; "
        f"{platform.processor() or platform.machine()}, {os.cpu_count()} cores, Python "
        f"{platform.python_version()}, torch {torch.__version__}, peft {version('peft')}, "
        f"flwr {version('flwr')}"
    )
    found: list[dict[str, Any]] = []
    for result in results(arguments):
        found.append(result)
        print(line(result, found), flush=True)
    if arguments.json:
        arguments.json.write_text(json.dumps(found, indent=1) + "\n")


if __name__ == "__main__":
    main()
