"""The numba kernels give the bits of the composition of stages, on every input that is ugly enough."""

from __future__ import annotations

import os
import shutil
import subprocess
import sys
from pathlib import Path

import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st
from torch import Tensor

import fedmerge
from fedmerge.errors import AdapterMismatch, RuleError
from fedmerge.kernels.cpu import merge_tensors, serves
from fedmerge.kernels.plan import fused
from fedmerge.kernels.selection import SMALLEST_SAMPLED
from fedmerge.rules import Mean, chain, parse_rule

from .cases import KINDS, RULES, keys, numbers, plain, same_bits


def merged(rule: str, tensors: list[Tensor], weights: Tensor, threads: int = 1) -> list[Tensor]:
    """By the kernel; each tensor is (clients, coordinates)."""
    plan = fused(parse_rule(rule))
    assert plan is not None
    assert serves(plan, torch.float32, weights)
    outputs = [torch.full((tensor.shape[1],), torch.nan) for tensor in tensors]
    values = [list(tensor) for tensor in tensors]
    merge_tensors(plan, values, weights, keys(len(tensors), len(weights)), outputs, threads)
    return outputs


@pytest.mark.parametrize("rule", RULES)
@settings(max_examples=25, deadline=None)
@given(
    clients=st.integers(1, 7),
    sizes=st.lists(st.sampled_from([0, 1, 2, 15, 16, 17, 511, 512, 513, 1500]), min_size=1, max_size=4),
    kind=st.sampled_from(KINDS),
    seed_and_threads=st.tuples(st.integers(0, 2**16), st.integers(1, 3)),
)
def test_same_bits_as_the_stages(rule, clients, sizes, kind, seed_and_threads):
    seed, threads = seed_and_threads
    tensors = [numbers((clients, size), kind, seed + size) for size in sizes]
    weights = torch.rand(clients, generator=torch.Generator().manual_seed(seed), dtype=torch.float64) + 0.01
    assert same_bits(merged(rule, tensors, weights, threads), plain(rule, tensors, weights))


@pytest.mark.parametrize("rule", RULES)
@pytest.mark.parametrize("kind", KINDS)
def test_same_bits_where_a_sample_brackets_the_threshold(rule, kind):
    size = SMALLEST_SAMPLED + 4321
    tensors = [numbers((3, size), kind, 1), numbers((3, size), "normal", 2)]
    weights = torch.tensor([120.0, 80.0, 7.5], dtype=torch.float64)
    assert same_bits(merged(rule, tensors, weights), plain(rule, tensors, weights))


def test_a_bracket_that_misses_is_found_out():
    """Every sampled entry is small and all the others are large: the sample knows nothing."""
    values = 1 + torch.rand(2, SMALLEST_SAMPLED * 2, generator=torch.Generator().manual_seed(0))
    values[:, ::16] = 1e-20
    weights = torch.ones(2, dtype=torch.float64)
    rule = "ties(density=0.3)"
    assert same_bits(merged(rule, [values], weights), plain(rule, [values], weights))


@pytest.mark.parametrize("rule", ["fedavg()", "ties(density=0.2)", "dare_ties(density=0.5)"])
def test_a_thousand_clients(rule):
    values = numbers((1000, 700), "ties", 3)
    weights = torch.rand(1000, dtype=torch.float64, generator=torch.Generator().manual_seed(0)) + 0.1
    assert same_bits(merged(rule, [values], weights), plain(rule, [values], weights))


@pytest.mark.parametrize("rule", ["ties(density=0.2)", "dare(density=0.5)", "task_arithmetic()"])
def test_one_large_tensor_is_shared_between_threads(rule):
    tensors = [numbers((3, 300_001), "normal", 0), numbers((3, 100), "normal", 1)]
    weights = torch.tensor([1.0, 2.0, 3.0], dtype=torch.float64)
    assert same_bits(merged(rule, tensors, weights, threads=3), plain(rule, tensors, weights))


def test_exactly_the_share_is_kept_and_of_equal_magnitudes_the_first():
    values = torch.tensor([[1.0, -1.0, 1.0, 0.5, -1.0]])
    (result,) = merged("ties(density=0.5)", [values], torch.ones(1, dtype=torch.float64))
    assert result.tolist() == [1.0, -1.0, 0.0, 0.0, 0.0]


def test_what_no_kernel_serves():
    ones = torch.ones(2, dtype=torch.float64)
    for rule in ["median()", "ties(density=0.2, scope='adapter')", "ties(density=0.2, like='peft')"]:
        assert fused(parse_rule(rule)) is None

    class Loud(Mean):
        """A stage of somebody's own, which may compute anything."""

    assert fused(chain(Loud())) is None
    plan = fused(parse_rule("ties(density=0.2)"))
    assert plan is not None
    assert not serves(plan, torch.float64, ones)
    assert not serves(plan, torch.float32, ones * 1e-200)
    elected_total = fused(parse_rule("chain(elect_sign(), total())"))
    assert elected_total is not None
    assert not serves(elected_total, torch.float32, ones)


def adapters(dtype: torch.dtype = torch.float32) -> list[dict[str, Tensor]]:
    generator = torch.Generator().manual_seed(0)
    shapes = {"a": (16, 300), "b": (300, 16), "c": (7,), "empty": (0, 3)}
    return [
        {name: torch.randn(shape, generator=generator).to(dtype) for name, shape in shapes.items()}
        for _ in range(5)
    ]


@pytest.mark.parametrize("rule", ["fedavg()", "ties(density=0.2)", "dare(density=0.5)"])
@pytest.mark.parametrize("dtype", [torch.float32, torch.bfloat16, torch.float16])
def test_merge_with_a_kernel_equals_merge_without(rule, dtype):
    deltas, names = adapters(dtype), list("abcde")
    one = fedmerge.merge(deltas, [3, 1, 4, 1, 5], rule=rule, names=names, kernel="numba", device="cpu")
    two = fedmerge.merge(deltas, [3, 1, 4, 1, 5], rule=rule, names=names, kernel="plain", device="cpu")
    assert (one.report.kernel, two.report.kernel) == ("numba", "plain")
    assert all(torch.equal(one.adapter.tensors[name], two.adapter.tensors[name]) for name in deltas[0])


def test_views_and_columns_are_merged_as_they_look():
    wide = torch.randn(2, 40, 30, generator=torch.Generator().manual_seed(0))
    deltas = [{"x": table.T, "y": table[:, ::2], "z": table[3:5]} for table in wide]
    one = fedmerge.merge(deltas, rule="ties(density=0.3)", kernel="numba", device="cpu")
    two = fedmerge.merge(
        [{k: v.clone() for k, v in d.items()} for d in deltas], rule="ties(density=0.3)", kernel="plain"
    )
    assert all(torch.equal(one.adapter.tensors[name], two.adapter.tensors[name]) for name in deltas[0])


def test_float64_tensors_go_the_plain_way_beside_the_kernel():
    deltas = [
        {"x": torch.full((3,), float(n)), "y": torch.full((3,), n + 1e-12, dtype=torch.float64)}
        for n in range(3)
    ]
    merged_ones = fedmerge.merge(deltas, rule="fedavg()", kernel="numba", device="cpu")
    assert merged_ones.adapter.tensors["y"].tolist() == pytest.approx([1 + 1e-12] * 3, rel=1e-15)
    assert merged_ones.adapter.tensors["x"].tolist() == [1.0] * 3


@pytest.mark.parametrize("kernel", ["plain", "numba"])
@pytest.mark.parametrize("rule", ["fedavg()", "task_arithmetic(scale=0.0)", "ties(density=0.2)"])
@pytest.mark.parametrize("bad", [torch.nan, torch.inf, -torch.inf])
def test_whatever_the_kernel_a_bad_value_is_told_by_name(kernel, rule, bad):
    deltas = adapters()
    deltas[3]["b"][7, 7] = bad
    with pytest.raises(AdapterMismatch, match=r"silo 'd': 'b' holds \d NaN and \d Inf among its 4800"):
        fedmerge.merge(deltas, rule=rule, names=list("abcde"), kernel=kernel, device="cpu")


def test_a_kernel_that_there_is_not_is_refused():
    with pytest.raises(RuleError, match="kernel='numba': there is none for median"):
        fedmerge.merge(adapters(), rule="median()", kernel="numba", device="cpu")
    with pytest.raises(RuleError, match="there is none for fedavg"):
        fedmerge.merge(adapters(torch.float64), rule="fedavg()", kernel="numba", device="cpu")


SMALL = "import fedmerge, torch, sys; d=[{'x': torch.ones(9)}]*2; "


def run(code: str, *, folder: Path | None = None, **environment: str) -> str:
    """Run code in a process of its own, with the package out of `folder`."""
    paths = {} if folder is None else {"PYTHONPATH": str(folder)}
    done = subprocess.run(
        [sys.executable, "-P", "-c", code],
        env={**os.environ, **paths, **environment},
        cwd=folder,
        capture_output=True,
        text=True,
        check=False,
    )
    assert done.returncode == 0, done.stderr
    return done.stdout.strip()


def test_small_merges_do_not_load_numba():
    assert run(SMALL + "fedmerge.merge(d, rule='ties()'); print('numba' in sys.modules)") == "False"


MERGE = SMALL + (
    "m = fedmerge.merge(d, rule='ties(density=0.5)', kernel='numba', device='cpu'); "
    "print(m.adapter.tensors['x'].sum().item(), fedmerge.__file__)"
)


@pytest.mark.parametrize("cache", ["in the user's folder", "nowhere"])
def test_a_read_only_install(tmp_path, cache):
    """Numba caches in the user's folder, or compiles without a cache where there is none."""
    package = tmp_path / "site" / "fedmerge"
    source = Path(fedmerge.__file__).parent
    shutil.copytree(source, package, ignore=shutil.ignore_patterns("__pycache__", "base"))
    # A file where the folder of caches would be: nobody can write below it, root neither.
    (package / "kernels" / "__pycache__").write_text("")
    home = tmp_path / "home"
    if cache == "nowhere":
        home.write_text("")
    else:
        home.mkdir()
    told = run(
        MERGE, folder=package.parent, HOME=str(home), XDG_CACHE_HOME=str(home / "cache"), NUMBA_CACHE_DIR=""
    )
    assert told.split() == ["4.0", str(package / "__init__.py")]
    assert bool(list(tmp_path.rglob("*.nbi"))) == (cache != "nowhere")
