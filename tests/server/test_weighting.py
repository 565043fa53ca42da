from __future__ import annotations

import math

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from fedmerge.server.weighting import weights_of

examples = st.lists(st.floats(1, 1e9), min_size=1, max_size=20)


@settings(deadline=None)
@given(examples, st.floats(0.01, 1.0))
def test_no_silo_counts_for_more_than_the_cap(given_examples, cap):
    weights = weights_of(given_examples, cap=cap)
    assert math.fsum(weights) == pytest.approx(len(weights))
    bound = max(cap, 1 / len(weights))
    assert max(weights) <= bound * math.fsum(weights) * (1 + 1e-9)
    # Below the level all count by their rows, above it alike.
    low = max(w / count for w, count in zip(weights, given_examples, strict=True))
    level = max(weights)
    assert all(
        w == pytest.approx(min(count * low, level)) for w, count in zip(weights, given_examples, strict=True)
    )


def test_weights():
    assert weights_of([5, 7], "uniform") == [1, 1]
    assert weights_of([], cap=0.5) == []
    assert weights_of([60, 40], cap=0.6) == pytest.approx([1.2, 0.8])
    assert weights_of([60, 40], cap=0.5) == [1, 1]
    assert weights_of([60, 40], cap=0.1) == [1, 1]
