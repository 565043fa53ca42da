from __future__ import annotations

from hypothesis import given, settings
from hypothesis import strategies as st

from fedmerge.server.sampling import sample

names = st.sets(st.text(max_size=5), min_size=1, max_size=30)


@settings(deadline=None)
@given(names, st.floats(0.001, 1.0), st.integers(), st.integers(1, 100))
def test_a_sample_is_the_same_in_any_order(given_names, fraction, seed, round):
    drawn = sample(given_names, fraction, seed=seed, round=round)
    assert drawn == sample(sorted(given_names, reverse=True), fraction, seed=seed, round=round)
    assert set(drawn) <= given_names and list(drawn) == sorted(drawn)
    assert len(drawn) == max(1, int(fraction * len(given_names) + 0.5))


def test_a_sample_is_pinned():
    silos = [f"silo-{number}" for number in range(10)]
    assert sample(silos, 0.3, seed=0, round=1) == ("silo-1", "silo-2", "silo-8")
    assert sample(silos, 1.0, seed=0, round=1) == tuple(sorted(silos))
    assert sample([], 1.0, seed=0, round=1) == ()


def test_samples_are_about_even():
    counts = dict.fromkeys("abcdefghij", 0)
    for round in range(1, 1001):
        for name in sample(counts, 0.3, seed=7, round=round):
            counts[name] += 1
    assert all(240 < count < 360 for count in counts.values())
