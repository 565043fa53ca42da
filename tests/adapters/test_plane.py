from __future__ import annotations

import numpy as np
import pytest
import torch

from fedmerge.adapters.adapter import Adapter
from fedmerge.adapters.plane import Triangle, laid_out, measure_plane
from fedmerge.errors import AdapterMismatch


def point(*values: float) -> Adapter:
    return Adapter({"x": torch.tensor(values, dtype=torch.float64)})


def test_places_are_those_of_the_vectors():
    origin, one, two = point(1, 1, 1), point(3, 1, 1), point(2, 4, 1)
    axes, points, distances = laid_out(
        Triangle(("start", "one", "two"), origin, one, two, {"merge": point(2, 2, 3), "one": one})
    )
    assert (axes.length, axes.lean, axes.height) == pytest.approx((2, 1, 3))
    assert points["one"] == pytest.approx((2, 0))
    assert points["two"] == pytest.approx((1, 3))
    assert points["merge"] == pytest.approx((1, 1))
    assert distances == pytest.approx({"merge": 2})


def test_coefficients_lead_back_to_the_place():
    axes, points, _ = laid_out(Triangle(("base", "one", "two"), None, point(3, 1), point(-1, 2)))
    for place, expected in ((points["one"], (1, 0)), (points["two"], (0, 1)), ((0.0, 0.0), (0, 0))):
        assert axes.coefficients(*place) == pytest.approx(expected, abs=1e-12)


def test_the_grid_is_scored_where_it_says(make, dense):
    origin, one, two = make(0), make(1), make(2)
    triangle = Triangle(("received", "one", "two"), origin, one, two)

    def length(adapter):
        products = sum(float((product**2).sum()) for product in dense(adapter).values())
        return products + float(adapter.tensors["head.weight"].square().sum())

    plane = measure_plane(triangle, 4, length)
    assert len(plane.losses) == len(plane.y) == len(plane.x) == 4
    vectors = [
        np.concatenate(
            [p.ravel() for p in dense(adapter).values()] + [adapter.tensors["head.weight"].ravel()]
        )
        for adapter in (origin, one, two)
    ]
    u = vectors[1] - vectors[0]
    u /= np.linalg.norm(u)
    v = vectors[2] - vectors[0]
    v -= (v @ u) * u
    v /= np.linalg.norm(v)
    for row, y in enumerate(plane.y):
        for column, x in enumerate(plane.x):
            expected = ((vectors[0] + x * u + y * v) ** 2).sum()
            assert plane.losses[row][column] == pytest.approx(expected, rel=1e-4)
    assert min(plane.x) < 0 < max(plane.x)
    assert max(plane.x) > plane.points["one"][0]
    assert max(plane.y) > plane.points["two"][1]


def test_three_on_a_line_span_no_plane():
    with pytest.raises(AdapterMismatch, match="'base', 'one', 'two' lie on a line"):
        laid_out(Triangle(("base", "one", "two"), None, point(1, 2), point(2, 4)))
    with pytest.raises(AdapterMismatch, match="lie on a line"):
        laid_out(Triangle(("base", "one", "two"), None, point(0, 0), point(2, 4)))
