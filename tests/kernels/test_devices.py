"""Merging on a device: what the CPU gives, and the same where the device has too little memory.

Needs no Flower, so that a machine with a GPU and torch alone can run it:
python -m pytest tests/kernels/test_devices.py
"""

from __future__ import annotations

import importlib

import pytest
import torch
from torch import Tensor

import fedmerge
from fedmerge.adapters import room, together
from fedmerge.adapters.spaces.layers import Layers

from .cramped import Cramped

DEVICE = "cuda" if torch.cuda.is_available() else "cpu:0"  # to us "cpu:0" is a device, and "cpu" the host
needs_gpu = pytest.mark.skipif(not torch.cuda.is_available(), reason="no GPU")

SAME_BITS = ["fedavg()", "ties(density=0.4)", "dare(density=0.5)", "median()", "trimmed_mean()", "ram()"]
BY_PRODUCTS = ["krum()", "geometric_median()", "model_stock()", "norm_clipping()", "karcher()"]
IN_PRODUCT = ["fedavg()", "ties(density=0.4)", "krum()", "tsv_merge()", "iso_c()"]
TOLERANCE = 1e-6
"""Of the largest value: float32 knows 6e-8 of it, and inner products are added up in another order."""

NAMES = list("vwxyz")


def adapters(width: int = 24, modules: int = 3) -> list[fedmerge.Adapter]:
    """The received adapter, and a delta of each silo."""
    generator = torch.Generator().manual_seed(0)
    shapes = {f"m{n}.lora_A.weight": (4, width) for n in range(modules)}
    shapes |= {f"m{n}.lora_B.weight": (width + 8, 4) for n in range(modules)} | {"head": (3, width)}
    lora = fedmerge.Lora(rank=4, alpha=8.0)
    return [
        fedmerge.Adapter({key: scale * torch.randn(shapes[key], generator=generator) for key in shapes}, lora)
        for scale in [1.0] + [0.1] * len(NAMES)
    ]


def merged(rule: str, space: str, device: str, given: list[fedmerge.Adapter], kernel: str = "auto"):
    received, *deltas = given
    return fedmerge.merge(
        deltas, [3, 1, 4, 1, 5], received=received, rule=rule, space=space, names=NAMES, device=device,
        kernel=kernel,
    )  # fmt: skip


class Room:
    """Makes operations of the merge itself fail: what is before and after it happens on the host."""

    def __init__(self, monkeypatch: pytest.MonkeyPatch) -> None:
        self.mode = Cramped(lambda number: False)
        merge = room.merge_with_room

        def cramped(*given):
            with self.mode:
                return merge(*given)

        monkeypatch.setattr(importlib.import_module("fedmerge.adapters.merge"), "merge_with_room", cramped)

    def full_at(self, place: int | None) -> None:
        self.mode = Cramped(lambda number: number == place, torch.device(DEVICE).type)


def products(adapter: fedmerge.Adapter) -> dict[str, Tensor]:
    """What an adapter does: in product space factors may turn against each other."""
    found = {name: value.double() for name, value in adapter.tensors.items() if "lora" not in name}
    for name, a in adapter.tensors.items():
        if "lora_A" in name:
            found[name] = adapter.tensors[name.replace("lora_A", "lora_B")].double() @ a.double()
    return found


def off(one: dict[str, Tensor], two: dict[str, Tensor]) -> float:
    """The largest difference, as a share of the largest value of its tensor."""
    return max(float((one[name] - two[name]).abs().max() / two[name].abs().max()) for name in two)


def same(one: dict[str, Tensor], two: dict[str, Tensor]) -> bool:
    return all(torch.equal(one[name].view(torch.int32), two[name].view(torch.int32)) for name in two)


@needs_gpu
@pytest.mark.parametrize("rule", SAME_BITS)
def test_elementwise_rules_give_the_bits_of_the_cpu(rule):
    given = adapters(width=700)
    one, two = (merged(rule, "factors()", device, given) for device in ("cuda", "cpu"))
    assert one.report.device.startswith("cuda")
    assert same(one.adapter.tensors, two.adapter.tensors)


@needs_gpu
@pytest.mark.parametrize("rule", BY_PRODUCTS)
def test_rules_that_look_at_inner_products_give_almost_those(rule):
    given = adapters(width=700)
    one, two = (merged(rule, "factors()", device, given) for device in ("cuda", "cpu"))
    assert off(one.adapter.tensors, two.adapter.tensors) < TOLERANCE


@needs_gpu
@pytest.mark.parametrize("rule", IN_PRODUCT)
def test_product_space_gives_almost_the_products_of_the_cpu(rule):
    given = adapters(width=700)
    one, two = (merged(rule, "product()", device, given) for device in ("cuda", "cpu"))
    assert off(products(one.adapter), products(two.adapter)) < TOLERANCE


CASES = [
    *((rule, "factors()", "plain") for rule in ["fedavg()", "ties(density=0.4)", "median()", "krum()"]),
    pytest.param("ties(density=0.4)", "factors()", "triton", marks=needs_gpu),
    *((rule, "product()", "plain") for rule in ["fedavg()", "ties(density=0.4)", "iso_c()"]),
    ("fedavg()", "residual()", "plain"),
    ("ties(density=0.4)", "core()", "plain"),
]


def spread(count: int, most: int) -> list[int]:
    """At most so many of `range(count)`, the first and the last among them."""
    return sorted({round(step * (count - 1) / (most - 1)) for step in range(most)})


@pytest.mark.parametrize("places", [8, pytest.param(10_000, marks=pytest.mark.slow)])
@pytest.mark.parametrize(("rule", "space", "kernel"), CASES)
def test_memory_that_runs_out_once_changes_no_bit(rule, space, kernel, places, monkeypatch):
    """Wherever it runs out: at each operation of the merge in turn, or at some spread over it."""
    given, room = adapters(width=6, modules=1), Room(monkeypatch)
    host = merged(rule, space, "cpu", given, "plain")
    room.full_at(None)
    expected = merged(rule, space, DEVICE, given, kernel)
    for place in spread(room.mode.made, places):
        room.full_at(place)
        found = merged(rule, space, DEVICE, given, kernel)
        assert room.mode.made > place
        reference = host if found.report.device == "cpu" else expected
        assert same(found.adapter.tensors, reference.adapter.tensors), (place, found.report.device)
    assert off(products(expected.adapter), products(host.adapter)) < TOLERANCE


def test_a_device_without_any_room_leaves_the_merge_to_the_cpu(monkeypatch, caplog):
    from fedmerge.adapters.spaces import Factors

    merge, tried = Factors.merge, []

    def full(self, received, deltas, rule, context):
        tried.append(str(context.device))
        if context.device != torch.device("cpu"):
            raise RuntimeError("CUDA error: CUSOLVER_STATUS_ALLOC_FAILED")
        return merge(self, received, deltas, rule, context)

    monkeypatch.setattr(Factors, "merge", full)
    given = adapters()
    found = merged("fedavg()", "factors()", DEVICE, given, "triton")
    assert tried == [str(torch.device(DEVICE)), "cpu"]
    assert found.report.device == "cpu"
    assert "has no room for this merge: the CPU merges" in caplog.text
    assert same(found.adapter.tensors, merged("fedavg()", "factors()", "cpu", given).adapter.tensors)


@pytest.mark.parametrize("words", ["CUDA error: an illegal memory access was encountered", "no convergence"])
def test_what_is_no_lack_of_memory_is_not_tried_again(monkeypatch, words):
    from fedmerge.adapters.spaces import Factors

    def broken(*given):
        raise RuntimeError(words)

    monkeypatch.setattr(Factors, "merge", broken)
    with pytest.raises(RuntimeError, match=words):
        merged("fedavg()", "factors()", DEVICE, adapters())


def test_a_cpu_without_room_says_so(monkeypatch):
    Room(monkeypatch).mode = Cramped(lambda number: True)
    with pytest.raises(torch.OutOfMemoryError):
        merged("fedavg()", "factors()", "cpu", adapters(width=6))


def test_modules_truncated_together_are_fewer_where_memory_runs_out(monkeypatch):
    received, *deltas = adapters(width=10, modules=5)
    shares = torch.full((len(deltas),), 0.2, dtype=torch.float64)

    def found() -> dict[str, together.Weighted]:
        layers = Layers(received, deltas, torch.device(DEVICE))
        known = dict.fromkeys(layers.pairs, shares)
        return together.weighted_together(layers.pairs, layers.updates, known, 4, layers.precision)

    expected, truncate, sizes = found(), together.truncate_together, []

    def cramped(updates, *rest):
        sizes.append(len(updates))
        if len(updates) > 1:
            raise torch.OutOfMemoryError("no room")
        return truncate(updates, *rest)

    monkeypatch.setattr(together, "truncate_together", cramped)
    alone = found()
    assert sizes == [5, 2, 1, 1, 1, 1, 1]
    assert set(alone) == set(expected)
    for name, one in alone.items():
        assert torch.allclose(one.low.values, expected[name].low.values, rtol=1e-12)
    monkeypatch.setattr(together, "truncate_together", truncate)
    with Cramped(lambda number: False, torch.device(DEVICE).type) as counting:
        found()
    for place in spread(counting.made, 12):
        with Cramped(lambda number, place=place: number == place, torch.device(DEVICE).type):
            whole = found()
        for name, one in whole.items():
            assert torch.allclose(one.low.values, expected[name].low.values, rtol=1e-12), (place, name)


@needs_gpu
@pytest.mark.parametrize(
    ("rule", "space", "kernel"),
    [
        ("fedavg()", "factors()", "auto"),
        ("ties(density=0.2)", "factors()", "auto"),
        ("ties(density=0.2)", "factors()", "plain"),
        ("median()", "factors()", "auto"),
        ("fedavg()", "product()", "auto"),
        ("ties(density=0.2)", "product()", "auto"),
    ],
)
@pytest.mark.parametrize("room_bytes", [4 << 20, 64 << 20, 256 << 20])
def test_a_gpu_that_is_almost_full_gives_the_same(rule, space, kernel, room_bytes):
    """Real memory that really runs out: the allocator is held to a little more than what is taken."""
    given = adapters(width=1 << 11, modules=24)
    there = merged(rule, space, "cuda", given, kernel)
    torch.cuda.synchronize()
    torch.cuda.empty_cache()
    total = torch.cuda.mem_get_info()[1]
    try:
        torch.cuda.set_per_process_memory_fraction((torch.cuda.memory_reserved() + room_bytes) / total)
        found = merged(rule, space, "cuda", given, kernel)
    finally:
        torch.cuda.set_per_process_memory_fraction(1.0)
        torch.cuda.empty_cache()
    print(rule, space, kernel, room_bytes >> 20, "MB:", found.report.device)
    if space == "factors()":
        assert same(found.adapter.tensors, there.adapter.tensors)
    else:
        assert off(products(found.adapter), products(there.adapter)) < TOLERANCE
