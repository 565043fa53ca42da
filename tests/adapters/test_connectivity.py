from __future__ import annotations

import math

import pytest
import torch

from fedmerge.adapters.adapter import Adapter
from fedmerge.adapters.connectivity import Ends, Line, Point, barrier, measure_line, spread_points


def at(x: float) -> Adapter:
    return Adapter({"x": torch.tensor([x], dtype=torch.float64)})


def wells(adapter: Adapter) -> float:
    """Two minima, at -1 and 1."""
    return (adapter.tensors["x"].item() ** 2 - 1) ** 2


def bowl(adapter: Adapter) -> float:
    return adapter.tensors["x"].item() ** 2


def test_two_wells_have_a_barrier_and_a_bowl_has_none():
    ends = Ends(("left", "right"), at(-1), at(1))
    assert measure_line(ends, spread_points(5), wells).barrier == 1
    inside = measure_line(ends, spread_points(5), bowl)
    assert (inside.barrier, inside.best) == (0, 0.5)


def test_a_line_of_uneven_ends_is_measured_from_the_straight_line_between():
    assert barrier([0, 0.5, 1], [0.0, 1.5, 2.0]) == 0.5
    assert barrier([0, 0.5, 1], [0.0, 0.9, 2.0]) == 0
    assert barrier([0, 1, 1.5], [1.0, 1.0, 7.0]) == 0


def test_losses_that_are_no_numbers_are_a_wall():
    assert barrier([0, 0.5, 1], [0.0, math.nan, 2.0]) == math.inf
    assert barrier([0, 0.5, 1], [math.nan, 1.0, 2.0]) == math.inf
    assert Line(("a", "b"), (0, 0.5, 1), (Point(1.0), Point(math.nan), Point(0.5))).best == 1


def test_from_the_base_and_beyond(make):
    stop = make(1)
    seen = []
    line = measure_line(
        Ends(("base", "one"), None, stop), spread_points(3, 2), lambda a: seen.append(a) or 0.0
    )
    assert line.at == (0.0, 0.5, 1.0, 1.5, 2.0)
    assert [adapter.lora.rank for adapter in seen] == [3] * 5  # one adapter, scaled
    norms = [float(adapter.tensors["head.weight"].norm()) for adapter in seen]
    assert norms == pytest.approx([t * norms[2] for t in line.at])


def test_what_is_known_is_not_scored_again():
    calls = []
    line = measure_line(
        Ends(("a", "b"), at(0), at(1)),
        (0.0, 0.5, 1.0),
        lambda adapter: calls.append(adapter) or (0.5, 0.9),
        {0.0: Point(1.0), 1.0: Point(2.0, silos={"a": 3.0})},
    )
    assert len(calls) == 1
    assert line.points == (Point(1.0), Point(0.5, 0.9), Point(2.0, silos={"a": 3.0}))
    assert line[1].silos == {"a": 3.0}


def test_points_are_spread_evenly_and_end_where_asked():
    assert spread_points(11, 1.5)[-1] == 1.5
    assert spread_points(11)[10] == 1.0
    assert 1.0 in spread_points(4, 2)
