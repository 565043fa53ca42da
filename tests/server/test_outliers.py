from __future__ import annotations

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from fedmerge.errors import ConfigError
from fedmerge.server.outliers import Clip, Finite, Refuse, parse_guard

norms = st.dictionaries(st.text(max_size=3), st.floats(0, 1e12), max_size=12)


@settings(deadline=None)
@given(norms, st.floats(1.01, 100))
def test_refusing_is_the_same_as_never_having_been_there(given_norms, times):
    policy = Refuse(times)
    refused = policy.factors(given_norms)
    left = {silo: norm for silo, norm in given_norms.items() if silo not in refused}
    assert policy.factors(left) == {}
    if refused:
        without_one = {silo: norm for silo, norm in given_norms.items() if silo != next(iter(refused))}
        assert policy.factors(without_one).keys() == refused.keys() - {next(iter(refused))}


def test_policies():
    norms = {"a": 1.0, "b": 2.0, "c": 1000.0}
    assert Finite().factors(norms) == {}
    assert Refuse(10).factors(norms) == {"c": 0}
    assert Clip(10).factors(norms) == {"c": 0.02}
    assert Clip(10).factors({"a": 1.0, "c": 1000.0}) == Refuse(10).factors({"a": 1.0, "c": 1000.0}) == {}
    assert Clip(10).factors({"a": 0.0, "b": 0.0, "c": 1.0}) == {}
    assert parse_guard("clip(times=3)") == Clip(3)


@pytest.mark.parametrize("text", ["refuse(times=1)", "clip(times='x')", "refuse(times=1e999)"])
def test_a_guard_out_of_range(text):
    with pytest.raises(ConfigError, match=r"strategy\.guard: times is"):
        parse_guard(text)


def test_an_unknown_guard():
    with pytest.raises(ConfigError, match="did you mean 'refuse'"):
        parse_guard("refuze()")


def test_where_most_learned_nothing_none_stands_out():
    assert Refuse(times=10).factors({"a": 0.0, "b": 0.0, "c": 1.0}) == {}
