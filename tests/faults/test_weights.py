"""Fault 22: what a silo says its weight is."""

from __future__ import annotations

import math

import pytest
from flwr.app import ConfigRecord

from tests.server.world import examples, node_of

from .federation import BAD, everyone, intact, left_out, run
from .link import link_grid

pytestmark = pytest.mark.fault(22)


def missing(content):
    del content["metrics"]["num-examples"]
    return content


def as_text(content):
    del content["metrics"]
    content["metrics"] = ConfigRecord({"num-examples": "40"})
    return content


def nowhere(content):
    del content["metrics"]
    return content


BAD_WEIGHTS = {
    **{str(value): examples(value) for value in (0, -5, -19.999, 2**62, 1e300, -0.0)},
    **{str(value): examples(value) for value in (math.nan, math.inf, -math.inf)},
    "a list": examples([1, 2]),
    "an empty list": examples([]),
    "a string": as_text,
    "missing": missing,
    "no metrics": nowhere,
}


@pytest.mark.parametrize("case", BAD_WEIGHTS)
def test_an_impossible_weight_is_refused(tmp_path, case):
    found = left_out(tmp_path, BAD_WEIGHTS[case], grid=link_grid)
    assert "examples" in found.refused[0][2] or "metric records" in found.refused[0][2]


@pytest.mark.parametrize("case", BAD_WEIGHTS)
def test_where_all_weights_are_impossible_the_round_fails(tmp_path, case):
    found = run(tmp_path / "run", node_of(everyone(BAD_WEIGHTS[case])), grid=link_grid)
    assert "0 of 4 silos gave a usable reply" in intact(found)


def test_a_large_weight_is_capped_to_its_share(tmp_path):
    node = node_of({BAD: examples(10**12)})
    found = run(tmp_path / "run", node, weight_cap=0.3, grid=link_grid)
    weights = {silo: entry["weight"] for silo, entry in found.lines[0]["admitted"].items()}
    assert weights[BAD] / sum(weights.values()) == pytest.approx(0.3)


def test_the_smallest_and_the_largest_weight_that_are_taken(tmp_path):
    for place, value in enumerate((5e-324, 10**12)):
        found = run(tmp_path / str(place), node_of({BAD: examples(value)}), grid=link_grid)
        assert found.refused == []
        assert found.failure is None


def test_a_weight_of_zero_counts_as_nothing_in_the_merge_itself():
    """The guard is not the only place that holds this."""
    from fedmerge.adapters.merge import merge
    from tests.server.world import bits, tensors

    deltas = [tensors(seed) for seed in range(3)]
    one = merge(deltas, [1, 2, 0], names="abc")
    two = merge(deltas[:2], [1, 2], names="ab")
    assert bits(one.adapter.tensors) == bits(two.adapter.tensors)
