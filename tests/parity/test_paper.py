"""`like="paper"` against oracles written from what the authors' code of TIES and DARE does, in plain loops.

TIES: all tensors of a model are one vector; of n entries those are kept that reach the (int(rho n) + 1)-th
largest magnitude; the sign of a coordinate is that of the sum, or where that is 0 of the sum of all
coordinates' signs; the mean is over those with that sign. DARE drops, divides by the share kept and adds up,
or goes on with TIES at its default density.
"""

from __future__ import annotations

import math

import pytest
import torch

from fedmerge import merge
from fedmerge.rules import Draw, parse_rule

NAMES = ("first", "second", "third")
SHAPES = {"head.bias": (3,), "head.weight": (3, 4), "norm.weight": (1,)}
Adapters = list[dict[str, torch.Tensor]]


def deltas(coarse: bool) -> Adapters:
    draw = torch.Generator().manual_seed(7)
    given = [{name: torch.randn(shape, generator=draw) for name, shape in SHAPES.items()} for _ in NAMES]
    if coarse:  # equal magnitudes, zeros and drawn votes
        given = [{name: (2 * tensor).round() / 2 for name, tensor in one.items()} for one in given]
    return given


def flat(adapter: dict[str, torch.Tensor]) -> list[float]:
    return [value for name in sorted(adapter) for value in adapter[name].flatten().tolist()]


def sign(value: float) -> int:
    return (value > 0) - (value < 0)


def trimmed(entries: list[float], density: float) -> list[float]:
    count = int(density * len(entries)) + 1
    if count > len(entries):
        return entries
    threshold = sorted((abs(entry) for entry in entries), reverse=True)[count - 1]
    return [entry if abs(entry) >= threshold else 0.0 for entry in entries]


def elected_mean(clients: list[list[float]]) -> list[float]:
    signs = [sign(math.fsum(column)) for column in zip(*clients, strict=True)]
    majority = sign(sum(signs))
    result = []
    for column, own in zip(zip(*clients, strict=True), signs, strict=True):
        counted = [entry for entry in column if entry and sign(entry) == (own or majority)]
        result.append(math.fsum(counted) / max(len(counted), 1))
    return result


def dropped(given: Adapters, density: float, whole: bool) -> list[list[float]]:
    """Each client's entries, those that our generator drops set to 0, the others divided by the density.

    A rule with a threshold over the whole adapter draws for it as one tensor without a name.
    """
    sizes = {name: math.prod(shape) for name, shape in SHAPES.items()}
    drawn = {"": sum(sizes.values())} if whole else dict(sorted(sizes.items()))
    found = []
    for silo, adapter in zip(NAMES, given, strict=True):
        numbers = [
            number
            for name, count in drawn.items()
            for number in Draw(3, 2, (silo,), name, (count,)).uniform_row(0, count).tolist()
        ]
        pairs = zip(flat(adapter), numbers, strict=True)
        found.append([value / density if number < density else 0.0 for value, number in pairs])
    return found


def ours(rule: str, given: Adapters) -> list[float]:
    weights = [5.0, 1.0, 2.0]  # which the authors do not have: they change nothing
    merged = merge(given, weights, rule=parse_rule(rule), names=NAMES, seed=3, round=2)
    return flat(merged.adapter.tensors)


def near(wanted: list[float]) -> object:
    return pytest.approx(wanted, rel=1e-6, abs=1e-6)


@pytest.mark.parametrize("coarse", [False, True], ids=["distinct", "coarse"])
@pytest.mark.parametrize("density", [0.2, 0.5, 0.9, 1.0])
def test_ties(density: float, coarse: bool) -> None:
    given = deltas(coarse)
    wanted = elected_mean([trimmed(flat(adapter), density) for adapter in given])
    assert ours(f"ties(density={density}, like='paper')", given) == near(wanted)


@pytest.mark.parametrize("density", [0.5, 0.3])
def test_dare(density: float) -> None:
    given = deltas(coarse=False)
    wanted = [math.fsum(column) for column in zip(*dropped(given, density, whole=False), strict=True)]
    assert ours(f"dare(density={density}, like='paper')", given) == near(wanted)


@pytest.mark.parametrize("density", [0.5, 0.3])
def test_dare_ties_trims_again(density: float) -> None:
    given = deltas(coarse=False)
    wanted = elected_mean([trimmed(entries, 0.2) for entries in dropped(given, density, whole=True)])
    assert ours(f"dare_ties(density={density}, like='paper')", given) == near(wanted)


def test_task_arithmetic_is_the_plain_sum() -> None:
    given = deltas(coarse=True)
    wanted = [0.3 * math.fsum(column) for column in zip(*map(flat, given), strict=True)]
    assert ours("task_arithmetic(scale=0.3, like='paper')", given) == near(wanted)


def test_the_threshold_is_one_for_all_tensors_and_keeps_all_that_equal_it() -> None:
    given = [{"head.bias": torch.tensor([9.0, 8.0, 8.0]), "head.weight": torch.full((3, 4), 1.0)}]
    merged = merge(given, rule="ties(density=0.1, like='paper')").adapter.tensors
    assert merged["head.bias"].tolist() == [9, 8, 8]  # int(0.1 * 15) + 1 = 2, and the third equals the second
    assert not merged["head.weight"].any()
    own = merge(given, rule="ties(density=0.1)").adapter.tensors
    assert [int(own[name].count_nonzero()) for name in own] == [1, 1]  # max(1, int(0.1 n)) of each tensor
