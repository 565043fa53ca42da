"""Merging on one GPU: the kernels, adapters out of the host's memory, and product space.

    python benchmarks/gpu.py [--json out.json] [--repeats 20]
    python benchmarks/gpu.py --interpret --small     # without a GPU: does it run at all

First every result is checked, then timed:

- *copy*: a large copy on the device, bytes read plus bytes written: the bandwidth that all else is held
  against; and a copy from pinned host memory.
- *kernels*: `merge_tensors` on a rank-16 adapter of a 7B Llama (448 tensors, 40 M float32 values) of 8
  clients that lies on the device. From the call until the device is done: building the tables of addresses
  is counted. *Floor*: reading the deltas (twice where entries are selected) and writing once, at the
  bandwidth.
- *host*: `fedmerge.merge` of 50 adapters of rank 32 (80 M values each) that lie in pageable host memory,
  float32 and bfloat16, result back on the host. *Floor*: the bytes at the pinned bandwidth.
- *product*: the 224 layers of a 7B, received adapter and 8 clients of rank 16, `fedavg()`: from factors on
  the device to truncated factors on the device; and all of `fedmerge.merge(space="product()")` from the host.

Checks: the same bits as the composition of stages on the CPU; in product space the product to 1e-8 of what
the unbatched path gives on the CPU. A check that fails ends the run.
"""

from __future__ import annotations

import argparse
import json
import os
import platform
import statistics
import time
from collections.abc import Callable, Iterator
from dataclasses import dataclass
from pathlib import Path
from typing import Any

DENSITY = 0.2
CLIENTS = 8
RULES = {
    "mean": "fedavg()",
    "ties": f"ties(density={DENSITY})",
    "dare": f"dare(density={DENSITY})",
    "dare_ties": f"dare_ties(density={DENSITY})",
}
PEERS = {"ties": "ties", "dare": "dare_linear", "dare_ties": "dare_ties"}
PARTS = ("kernels", "host", "product")
TARGETS = {"ties": ("times its floor", 2.0), "host": ("s", 1.0), "product": ("s", 0.1)}


@dataclass(frozen=True)
class Size:
    """How large everything is: a 7B Llama's, or next to nothing."""

    hidden: int = 4096
    inner: int = 11008
    layers: int = 32
    rank: int = 16
    host_rank: int = 32
    host_clients: int = 50
    copied: int = 1 << 32
    repeats: int = 20


SMALL = Size(hidden=24, inner=40, layers=1, rank=2, host_rank=2, host_clients=3, copied=1 << 12, repeats=1)


def shapes(size: Size, rank: int) -> dict[str, tuple[int, int]]:
    """Names and shapes of an adapter's tensors."""
    hidden, inner = size.hidden, size.inner
    modules = dict.fromkeys(("q_proj", "k_proj", "v_proj", "o_proj"), (hidden, hidden))
    modules |= {"gate_proj": (hidden, inner), "up_proj": (hidden, inner), "down_proj": (inner, hidden)}
    found = {}
    for layer in range(size.layers):
        for module, (inputs, outputs) in modules.items():
            name = f"base_model.model.model.layers.{layer}.{module}"
            found[f"{name}.lora_A.weight"] = (rank, inputs)
            found[f"{name}.lora_B.weight"] = (outputs, rank)
    return found


class Bench:
    """One machine, one size. Torch and Triton are loaded after `--interpret` has been read."""

    def __init__(self, size: Size, device: str) -> None:
        import torch

        self.torch, self.size, self.device = torch, size, torch.device(device)
        self.cuda = self.device.type == "cuda"
        self.bandwidth = self.bus = 0.0

    def seconds(self, work: Callable[[], object], *, warm: int = 2) -> list[float]:
        """Seconds of each repeat, from the call until the device is done."""
        for _ in range(warm if self.cuda else 0):
            work()
        spent = []
        for _ in range(self.size.repeats):
            self.wait()
            began = time.perf_counter()
            result = work()
            self.wait()
            spent.append(time.perf_counter() - began)
            del result
        return spent

    def wait(self) -> None:
        if self.cuda:
            self.torch.cuda.synchronize()

    def delta(self, rank: int, seed: int) -> dict[str, Any]:
        """An adapter's tensors on the host, each with a scale of its own."""
        torch = self.torch
        generator = torch.Generator().manual_seed(seed)
        made = {}
        for place, (name, shape) in enumerate(shapes(self.size, rank).items()):
            values = torch.randn(shape, generator=generator) * (0.001 + 0.0001 * place)
            made[name] = values
        return made

    def copies(self) -> Iterator[dict[str, Any]]:
        """The bandwidth of the device, and that of the way to it."""
        torch = self.torch
        source = torch.randint(0, 255, (self.size.copied,), dtype=torch.uint8, device=self.device)
        target = torch.empty_like(source)
        spent = self.seconds(lambda: target.copy_(source))
        self.bandwidth = 2 * self.size.copied / statistics.median(spent)
        yield row("copy", "device to device", spent, told=f"{self.bandwidth / 1e9:.0f} GB/s")
        pinned = torch.empty(self.size.copied // 4, dtype=torch.uint8, pin_memory=self.cuda).random_()
        spent = self.seconds(lambda: target[: len(pinned)].copy_(pinned, non_blocking=True))
        self.bus = len(pinned) / statistics.median(spent)
        yield row("copy", "pinned host to device", spent, told=f"{self.bus / 1e9:.0f} GB/s")

    def kernels(self) -> Iterator[dict[str, Any]]:
        """The fused kernels on tensors that lie on the device."""
        import numpy as np

        from fedmerge.kernels.gpu import merge_tensors
        from fedmerge.kernels.plan import fused
        from fedmerge.rules import Draw, Stack, parse_rule
        from fedmerge.rules.randomness import stream_key

        torch = self.torch
        host = [self.delta(self.size.rank, client) for client in range(CLIENTS)]
        # Equal magnitudes across the threshold, a share of -0.0, and denormals, each in a tensor of its own.
        for place, spoil in enumerate(
            [lambda v: (v * 500).round() / 500, lambda v: v * 0 * v.sign(), lambda v: v * 1e-38]
        ):
            name = list(host[0])[place]
            for delta in host:
                delta[name] = spoil(delta[name])
        names, silos = list(host[0]), tuple(f"silo-{client}" for client in range(CLIENTS))
        values = [[delta[name].flatten().to(self.device) for delta in host] for name in names]
        outputs = [torch.full_like(clients[0], torch.nan) for clients in values]
        weights = torch.tensor([3.0, 1, 4, 1, 5, 9, 2, 6], dtype=torch.float64)
        keys = np.array([[stream_key(0, 1, silo, name) for silo in silos] for name in names], dtype=np.int64)
        read = CLIENTS * sum(output.numel() for output in outputs) * 4
        for label, text in RULES.items():
            rule = parse_rule(text)
            plan = fused(rule)
            assert plan is not None

            def merge(plan: Any = plan) -> None:
                given = keys if plan.drop is not None else None
                merge_tensors(plan, values, weights, given, outputs)

            merge()
            for place in {*range(min(7, len(names))), len(names) - 1}:
                stack = Stack(torch.stack([clients.cpu() for clients in values[place]]), weights[:, None])
                draw = Draw(0, 1, silos, names[place], (stack.coordinates,))
                found, expected = outputs[place].cpu(), rule(stack, draw)
                if not torch.equal(found.view(torch.int32), expected.view(torch.int32)):
                    raise SystemExit(f"{label}, {names[place]}: not the bits of the stages on the CPU")
            floor = ((2 if plan.keep else 1) * read + read / CLIENTS) / self.bandwidth
            ours = row("kernels", label, self.seconds(merge), floor=floor, target=label)
            yield ours
            if label in PEERS and self.cuda:
                yield self.peer(label, values, weights, statistics.median(ours["seconds"]))

    def peer(self, label: str, values: Any, weights: Any, ours: float) -> dict[str, Any]:
        """PEFT's own function on the same tensors on the same device, tensor by tensor as PEFT calls it."""
        from peft.utils import merge_utils

        function, knobs = getattr(merge_utils, PEERS[label]), {"density": DENSITY}
        shares = weights.to(self.device, self.torch.float32)

        def merge() -> None:
            for clients in values:
                function(clients, shares, **knobs)

        spent = self.seconds(merge, warm=1)
        told = f"ours is {statistics.median(spent) / ours:.0f} x as fast"
        return row("peer", f"PEFT's {PEERS[label]}", spent, told=told)

    def host(self) -> Iterator[dict[str, Any]]:
        """Many adapters out of the host's memory."""
        import fedmerge

        torch, clients = self.torch, self.size.host_clients
        first = self.delta(self.size.host_rank, 0)
        names = [f"silo-{client:02}" for client in range(clients)]
        for dtype in (torch.float32, torch.bfloat16):
            # Rolled, so that fifty need not be drawn; each has memory of its own.
            deltas = [
                {name: tensor.roll(997 * client).to(dtype, copy=True) for name, tensor in first.items()}
                for client in range(clients)
            ]
            sent = clients * sum(tensor.numel() for tensor in first.values()) * dtype.itemsize
            for label in ("mean", "ties"):

                def merge(deltas: Any = deltas, label: str = label, device: str = str(self.device)) -> Any:
                    kernel = "triton" if device == str(self.device) else "auto"
                    return fedmerge.merge(
                        deltas, rule=RULES[label], names=names, device=device, kernel=kernel, finite=True
                    )

                ours, expected = merge().adapter.tensors, merge(device="cpu:0").adapter.tensors
                if any(not torch.equal(ours[name], expected[name]) for name in ours):
                    raise SystemExit(f"{label} of {clients} {dtype} adapters: not the bits of the CPU")
                kind = f"{label}, {clients} x {str(dtype)[6:]}"
                yield row("host", kind, self.seconds(merge, warm=1), floor=sent / self.bus, target="host")

    def product(self) -> Iterator[dict[str, Any]]:
        """A 7B's layers in product space."""
        import fedmerge
        from fedmerge.adapters.lowrank import orthonormal, truncate_between
        from fedmerge.adapters.spaces.layers import Layers
        from fedmerge.adapters.together import weighted_together

        torch, rank = self.torch, self.size.rank
        lora = fedmerge.Lora(rank=rank, alpha=2.0 * rank)
        received = fedmerge.Adapter(self.delta(rank, 99), lora)
        sent = [
            fedmerge.Adapter({name: 0.1 * tensor for name, tensor in self.delta(rank, client).items()}, lora)
            for client in range(CLIENTS)
        ]
        layers = Layers(received, sent, self.device)
        updates = {name: layers.updates(name) for name in layers.pairs}
        shares = dict.fromkeys(updates, torch.full((CLIENTS,), 1 / CLIENTS, dtype=torch.float64))

        def together() -> Any:
            return weighted_together(updates, updates.__getitem__, shares, rank, layers.precision)

        found, on_host = together(), Layers(received, sent, torch.device("cpu"))
        for name in list(updates)[:7]:
            own = on_host.updates(name)
            bases = orthonormal(own.stacked[0]), orthonormal(own.stacked[1].T)
            low = truncate_between(
                bases[0], own.core(shares[name].tolist()), bases[1], rank, layers.precision(name)
            )
            ours = found[name].low
            one = (ours.left * ours.values @ ours.right).cpu()
            off = torch.linalg.matrix_norm(
                one - low.left * low.values @ low.right
            ) / torch.linalg.vector_norm(low.values)
            if not float(off) < 1e-8:
                raise SystemExit(f"product, {name}: {float(off):.1e} off the unbatched path on the CPU")
        told = f"{len(found)} of {len(updates)} layers in batches"
        yield row("product", f"{len(updates)} layers", self.seconds(together), target="product", told=told)
        names = [f"silo-{client}" for client in range(CLIENTS)]

        def whole() -> Any:
            return fedmerge.merge(
                sent, received=received, space="product()", names=names, device=str(self.device), finite=True
            )

        yield row("product", "merge() from the host", self.seconds(whole, warm=1))


def row(
    part: str, label: str, spent: list[float], *, floor: float = 0.0, target: str = "", told: str = ""
) -> dict[str, Any]:
    """One measurement."""
    return {"part": part, "what": label, "seconds": spent, "floor": floor, "target": target, "told": told}


def line(found: dict[str, Any], *, judged: bool) -> str:
    """One row of the table; targets are for the real size on a real GPU."""
    median = statistics.median(found["seconds"])
    spread = f"({min(found['seconds']) * 1e3:.3f} to {max(found['seconds']) * 1e3:.3f})"
    parts = [f"{found['part']:8} {found['what']:28} {median * 1e3:10.3f} ms {spread:24}"]
    ratio = median / found["floor"] if found["floor"] else 0.0
    if ratio:
        parts.append(f"{ratio:6.2f} x the floor of {found['floor'] * 1e3:.3f} ms")
    if judged and found["target"] in TARGETS:
        unit, limit = TARGETS[found["target"]]
        met = (ratio if unit.startswith("times") else median) <= limit
        parts.append(f"asked {limit:g} {unit}: {'met' if met else 'NOT MET'}")
    return "  ".join([*parts, found["told"]]).rstrip()


def options() -> argparse.Namespace:
    parser = argparse.ArgumentParser(
        description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter
    )
    parser.add_argument("--interpret", action="store_true", help="Triton's interpreter, without a GPU")
    parser.add_argument("--small", action="store_true", help="next to nothing: does it run at all")
    parser.add_argument("--repeats", type=int, default=0)
    parser.add_argument(
        "--only", nargs="*", default=PARTS, choices=PARTS, metavar="PART", help="of " + ", ".join(PARTS)
    )
    parser.add_argument("--json", type=Path, help="where to write every measurement")
    return parser.parse_args()


def main() -> None:
    given = options()
    if given.interpret:
        os.environ["TRITON_INTERPRET"] = "1"  # before anything loads Triton
    size = SMALL if given.small else Size()
    if given.repeats:
        size = Size(**{**size.__dict__, "repeats": given.repeats})

    import torch
    import triton

    if not given.interpret and not torch.cuda.is_available():
        raise SystemExit("no GPU here: --interpret --small shows whether the script runs")
    bench = Bench(size, "cpu" if given.interpret else "cuda")
    place = platform.machine() if given.interpret else torch.cuda.get_device_name()
    print(
        f"{place}, {os.cpu_count()} cores, torch {torch.__version__}, triton {triton.__version__}"
        + (", interpreted: the times mean nothing" if given.interpret else "")
    )
    found = []
    for part in [bench.copies, *(getattr(bench, name) for name in given.only)]:
        for measured in part():
            found.append(measured)
            print(line(measured, judged=bench.cuda and not given.small), flush=True)
    if bench.cuda:
        print(f"peak on the device: {torch.cuda.max_memory_allocated() / 1e9:.1f} GB")
    if given.json:
        told = {"machine": place, "torch": torch.__version__, "triton": triton.__version__, "rows": found}
        given.json.write_text(json.dumps(told, indent=1) + "\n")


if __name__ == "__main__":
    main()
