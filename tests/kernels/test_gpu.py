"""The Triton kernels give the bits of the composition of stages: interpreted, or compiled where a GPU is."""

from __future__ import annotations

import json
import os
import subprocess
import sys
from pathlib import Path

import pytest
import torch
from torch import Tensor

import fedmerge
from fedmerge.adapters.batches import in_batches
from fedmerge.kernels.plan import fused
from fedmerge.rules import parse_rule

from .cases import KINDS, RULES, keys, numbers, plain, same_bits

pytest.importorskip("triton")
from fedmerge.kernels import gpu_select
from fedmerge.kernels.gpu import merge_tensors, serves
from fedmerge.kernels.gpu_table import BLOCK

DEVICE = "cuda" if torch.cuda.is_available() else "cpu"
SIZES = [1, 2, BLOCK - 1, BLOCK, 0, BLOCK + 1, 2 * BLOCK + 77]


def merged(rule: str, tensors: list[Tensor], weights: Tensor) -> list[Tensor]:
    plan = fused(parse_rule(rule))
    assert plan is not None
    assert serves(plan, tensors[0].dtype, weights)
    outputs = [torch.full((tensor.shape[1],), torch.nan, device=DEVICE) for tensor in tensors]
    values = [[row.to(DEVICE) for row in tensor] for tensor in tensors]
    merge_tensors(plan, values, weights, keys(len(tensors), len(weights)), outputs)
    return [output.cpu() for output in outputs]


@pytest.mark.parametrize("rule", RULES)
def test_same_bits_as_the_stages(rule):
    kinds = KINDS * 2
    tensors = [numbers((3, size), kinds[place], place) for place, size in enumerate(SIZES)]
    weights = torch.tensor([120.0, 80.0, 7.5], dtype=torch.float64)
    assert same_bits(merged(rule, tensors, weights), plain(rule, tensors, weights))


@pytest.mark.parametrize("kind", KINDS)
@pytest.mark.parametrize("clients", [1, 4])
def test_selection_is_exact(kind, clients):
    tensors = [numbers((clients, 1500), kind, 7), numbers((clients, 40), kind, 8)]
    weights = torch.arange(1, clients + 1, dtype=torch.float64)
    rule = "ties(density=0.31)"
    assert same_bits(merged(rule, tensors, weights), plain(rule, tensors, weights))


@pytest.mark.parametrize("spoil", ["too many between", "sample misled", "none"])
def test_a_segment_that_its_sample_does_not_bracket_is_searched_as_a_whole(monkeypatch, spoil):
    """Beside others that it does; whatever the way, the same bits."""
    generator = torch.Generator().manual_seed(0)
    odd, even = torch.randn(2, 20_000, generator=generator), torch.randn(2, 9000, generator=generator)
    if spoil == "too many between":
        odd[1] = 1 + torch.rand(20_000, generator=generator).round(decimals=1)
    if spoil == "sample misled":  # just the entries that are looked at are large
        odd[1, torch.arange(gpu_select.SAMPLE) * 20_000 // gpu_select.SAMPLE] = 9.0
    seen = []
    gathered = gpu_select._gathered
    monkeypatch.setattr(gpu_select, "_gathered", lambda *given: seen.append(gathered(*given)) or seen[-1])
    weights = torch.ones(2, dtype=torch.float64)
    rule = "ties(density=0.3)"
    assert same_bits(merged(rule, [odd, even], weights), plain(rule, [odd, even], weights))
    whole = seen[0][0].host_sizes == [[20_000], [9000]]
    assert whole.tolist() == [[False, spoil != "none"], [False, False]]


def test_many_clients():
    values = numbers((200, 300), "ties", 3)
    weights = torch.rand(200, dtype=torch.float64, generator=torch.Generator().manual_seed(0)) + 0.1
    for rule in ["ties(density=0.2)", "dare_ties(density=0.5)"]:
        assert same_bits(merged(rule, [values], weights), plain(rule, [values], weights))


@pytest.mark.parametrize("dtype", [torch.bfloat16, torch.float16])
def test_16_bits_are_read_as_they_lie(dtype):
    tensors = [numbers((3, 700), "normal", 1).to(dtype), numbers((3, 50), "ties", 2).to(dtype)]
    weights = torch.tensor([1.0, 2.0, 3.0], dtype=torch.float64)
    for rule in ["fedavg()", "ties(density=0.3)", "dare_ties(density=0.5)"]:
        assert same_bits(merged(rule, tensors, weights), plain(rule, tensors, weights))


@pytest.mark.parametrize("rule", ["ties(density=0.2)", "dare(density=0.5)"])
def test_merge_with_the_kernel_equals_merge_without(rule):
    generator = torch.Generator().manual_seed(0)
    deltas = [
        {"a": torch.randn(8, 30, generator=generator), "b": torch.randn(7, generator=generator)}
        for _ in range(3)
    ]
    names = list("xyz")
    one = fedmerge.merge(deltas, [3, 1, 4], rule=rule, names=names, kernel="triton", device=DEVICE)
    two = fedmerge.merge(deltas, [3, 1, 4], rule=rule, names=names, kernel="plain", device="cpu")
    assert one.report.kernel == "triton"
    assert all(torch.equal(one.adapter.tensors[name], two.adapter.tensors[name]) for name in deltas[0])


@pytest.mark.skipif(not torch.cuda.is_available(), reason="no GPU")
@pytest.mark.parametrize("rule", RULES)
def test_a_gpu_gives_the_bits_of_the_cpu(rule):
    generator = torch.Generator().manual_seed(0)
    deltas = [{"a": torch.randn(16, 40_000, generator=generator)} for _ in range(5)]
    one = fedmerge.merge(deltas, rule=rule, names=list("vwxyz"), kernel="triton", device="cuda")
    two = fedmerge.merge(deltas, rule=rule, names=list("vwxyz"), kernel="numba", device="cpu")
    assert torch.equal(one.adapter.tensors["a"], two.adapter.tensors["a"])


def test_less_memory_means_smaller_batches_and_the_same_results():
    asked = []

    def work(batch: list[int]) -> list[int]:
        asked.append(list(batch))
        if sum(batch) > 5:
            raise torch.OutOfMemoryError("no room")
        return [number * number for number in batch]

    assert list(in_batches([1, 2, 3, 4, 5, 1], lambda number: number, 100, work)) == [1, 4, 9, 16, 25, 1]
    assert asked[0] == [1, 2, 3, 4, 5, 1]
    assert all(sum(batch) <= 5 for batch in asked[-4:])
    # What has no room even alone is told, and goes another way.
    assert list(in_batches([6, 1], lambda number: number, 100, work)) == [None, 1]


def test_a_merge_that_runs_out_of_memory_ends_with_the_same_bits(monkeypatch):
    """The device has room for two tensors at most; the merge does not know and finds out."""
    from fedmerge.adapters import fused as seam
    from fedmerge.kernels import gpu

    real, sizes = gpu.merge_tensors, []

    def cramped(plan, values, *rest):
        sizes.append(len(values))
        if len(values) > 2:
            raise torch.OutOfMemoryError("no room")
        real(plan, values, *rest)

    monkeypatch.setattr(gpu, "merge_tensors", cramped)
    monkeypatch.setattr(seam, "_bytes_beside", lambda *given: 0)
    generator = torch.Generator().manual_seed(0)
    deltas = [{f"t{n}": torch.randn(9, generator=generator) for n in range(5)} for _ in range(2)]
    one = fedmerge.merge(deltas, rule="ties(density=0.5)", kernel="triton", device=DEVICE)
    two = fedmerge.merge(deltas, rule="ties(density=0.5)", kernel="plain", device="cpu")
    assert all(torch.equal(one.adapter.tensors[name], two.adapter.tensors[name]) for name in deltas[0])
    assert max(sizes) == 5
    assert sizes[-1] <= 2


def test_every_kernel_compiles_for_a_hopper_chip():
    """No GPU is needed for that. Products and sums stay apart, divisions are exact, registers suffice."""
    environment = {name: value for name, value in os.environ.items() if name != "TRITON_INTERPRET"}
    script = ["-c", "import runpy, sys; runpy.run_path(sys.argv[1], run_name='__main__')"]
    command = [sys.executable, *script, str(Path(__file__).with_name("compiling.py"))]
    done = subprocess.run(command, env=environment, capture_output=True, text=True, check=False)
    assert done.returncode == 0, done.stderr
    kernels = json.loads(done.stdout)
    names = {"_merge", "_histogram", "_choose", "_sample", "_gather", "_last"}
    assert {kernel["kernel"] for kernel in kernels} == names
    for kernel in kernels:
        assert kernel["fused"] == kernel["inexact divisions"] == 0, kernel
        assert not kernel["stack"], kernel
        assert kernel["divisions"] > 0 or kernel["kernel"] != "_merge"


@pytest.mark.skipif(torch.cuda.is_available(), reason="a GPU runs it in earnest")
def test_the_benchmark_runs_without_a_gpu(tmp_path, project_root):
    command = [sys.executable, str(project_root / "benchmarks" / "gpu.py"), "--interpret", "--small"]
    command += ["--json", str(tmp_path / "out.json")]
    done = subprocess.run(command, capture_output=True, text=True, check=False)
    assert done.returncode == 0, done.stdout + done.stderr
    told = json.loads((tmp_path / "out.json").read_text())
    assert {row["part"] for row in told["rows"]} == {"copy", "kernels", "host", "product"}
    assert "interpreted: the times mean nothing" in done.stdout
