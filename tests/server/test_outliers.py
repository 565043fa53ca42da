from __future__ import annotations

import math

import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st

from fedmerge.errors import ConfigError
from fedmerge.server.directions import cosines, pairs_of
from fedmerge.server.outliers import Clip, Finite, Refuse, parse_guard

from .world import bits, node_of, run, tensors

norms = st.dictionaries(st.text(max_size=3), st.floats(0, 1e12), max_size=12)
coordinates = st.lists(st.floats(-10, 10, width=32), min_size=3, max_size=3)
deltas = st.dictionaries(st.sampled_from("abcdefgh"), coordinates, max_size=8)


def factors(policy, given_norms, pairs=dict):
    return {silo: verdict.factor for silo, verdict in policy.judge(given_norms, pairs).items()}


def measured(coordinates):
    """Lengths and pairs of deltas that are given by their coordinates."""
    values = {silo: {"w": torch.tensor(each)} for silo, each in coordinates.items()}
    lengths = {silo: float(each["w"].double().norm()) for silo, each in values.items()}
    return lengths, pairs_of(values, lengths)


@settings(deadline=None)
@given(norms, st.floats(1.01, 100))
def test_refusing_is_the_same_as_never_having_been_there(given_norms, times):
    policy = Refuse(times)
    refused = policy.judge(given_norms)
    left = {silo: norm for silo, norm in given_norms.items() if silo not in refused}
    assert policy.judge(left) == {}
    if refused:
        without_one = {silo: norm for silo, norm in given_norms.items() if silo != next(iter(refused))}
        assert policy.judge(without_one).keys() == refused.keys() - {next(iter(refused))}


@settings(deadline=None)
@given(deltas, st.sampled_from([Refuse(2, cosine=-0.3), Refuse(9, cosine=0.5), Clip(2, cosine=-0.1)]))
def test_refusing_by_direction_is_the_same_as_never_having_been_there(given_deltas, policy):
    lengths, pairs = measured(given_deltas)
    verdicts = policy.judge(lengths, pairs)
    left = {
        silo: each
        for silo, each in given_deltas.items()
        if not (silo in verdicts and not verdicts[silo].factor)
    }
    left_lengths, left_pairs = measured(left)
    assert policy.judge(left_lengths, left_pairs) == {
        silo: verdict for silo, verdict in verdicts.items() if verdict.factor
    }


def test_policies():
    norms = {"a": 1.0, "b": 2.0, "c": 1000.0}
    assert Finite().judge(norms) == {}
    assert factors(Refuse(10), norms) == {"c": 0}
    assert factors(Clip(10), norms) == {"c": 0.02}
    assert Clip(10).judge({"a": 1.0, "c": 1000.0}) == Refuse(10).judge({"a": 1.0, "c": 1000.0}) == {}
    assert Clip(10).judge({"a": 0.0, "b": 0.0, "c": 1.0}) == {}
    assert parse_guard("clip(times=3)") == Clip(3)
    assert parse_guard("refuse(times=10, cosine=-0.5)") == Refuse(10, -0.5)


@pytest.mark.parametrize("text", ["refuse(times=1)", "clip(times='x')", "refuse(times=1e999)"])
def test_a_guard_out_of_range(text):
    with pytest.raises(ConfigError, match=r"strategy\.guard: times is"):
        parse_guard(text)


@pytest.mark.parametrize(
    "text", ["refuse(cosine=1)", "clip(cosine=-1.5)", "refuse(cosine='x')", "clip(cosine=True)"]
)
def test_a_cosine_out_of_range(text):
    with pytest.raises(
        ConfigError, match=r"strategy\.guard: cosine is .*, expected a number from -1 and below 1"
    ):
        parse_guard(text)


def test_an_unknown_guard():
    with pytest.raises(ConfigError, match="did you mean 'refuse'"):
        parse_guard("refuze()")


def test_where_most_learned_nothing_none_stands_out():
    assert Refuse(times=10).judge({"a": 0.0, "b": 0.0, "c": 1.0}) == {}


AGAINST = {"a": [1.0, 0.1, 0.0], "b": [-1.0, 0.0, 0.0], "c": [1.0, 0.0, 0.1], "d": [1.0, 0.0, 0.0]}


def test_who_points_against_the_others_is_refused_whoever_clips():
    lengths, pairs = measured(AGAINST)
    for policy in (Refuse(10, cosine=-0.5), Clip(10, cosine=-0.5)):
        verdicts = policy.judge(lengths, pairs)
        assert {silo: verdict.factor for silo, verdict in verdicts.items()} == {"b": 0.0}
        assert verdicts["b"].reason == (
            "its delta points away from the others': cosine -0.999, the bound is -0.5"
        )


def test_one_long_delta_against_the_others_does_not_make_them_the_odd_ones():
    lengths, pairs = measured({**AGAINST, "b": [-1e30, 0.0, 0.0]})
    assert factors(Refuse(10, cosine=-0.5), lengths, pairs) == {"b": 0.0}
    assert factors(Clip(2, cosine=-0.5), lengths, pairs) == {"b": 0.0}


@settings(deadline=None, max_examples=40)
@given(deltas, st.randoms())
def test_cosines_do_not_depend_on_the_order_and_are_cosines(given_deltas, random):
    lengths, pairs = measured(given_deltas)
    found = cosines(lengths, pairs()) if lengths else {}
    order = random.sample(sorted(given_deltas), len(given_deltas))
    lengths, pairs = measured({silo: given_deltas[silo] for silo in order})
    assert (cosines(lengths, pairs()) if lengths else {}) == found
    for silo, cosine in found.items():
        others = [torch.tensor(each).double() for name, each in given_deltas.items() if name != silo]
        mean, own = torch.stack(others).mean(0), torch.tensor(given_deltas[silo]).double()
        if mean.norm() > 1e-3:
            assert cosine == pytest.approx(float(own @ mean / own.norm() / mean.norm()), abs=1e-6)


def test_an_all_zero_delta_has_no_direction():
    """Fault 5: it is admitted, counted and flagged."""
    lengths, pairs = measured({"a": [0.0] * 3, "b": [0.0, 1.0, 0.0], "c": [0.0, 2.0, 0.0]})
    assert set(cosines(lengths, pairs())) == {"b", "c"}
    assert Refuse(10, cosine=0.5).judge(lengths, pairs) == {}


def test_huge_values_in_double_precision_do_not_overflow():
    values = {
        silo: {"w": torch.tensor([1e300, each], dtype=torch.float64)}
        for silo, each in (("a", 1.0), ("b", 2.0))
    }
    found = cosines(dict.fromkeys(values, 1e300), pairs_of(values, dict.fromkeys(values, 1e300))())
    assert all(math.isclose(cosine, 1.0) for cosine in found.values()) and len(found) == 2


def test_whole_numbers_have_no_direction():
    values = {
        silo: {"n": torch.tensor([7]), "w": torch.tensor([1.0, each])}
        for silo, each in (("a", 0.0), ("b", 0.0))
    }
    assert pairs_of(values, {"a": 1.0, "b": 1.0})()["a", "b"] == 1.0


@pytest.mark.parametrize("guard", ["refuse(times=10, cosine=-0.5)", "clip(times=10, cosine=-0.5)"])
def test_in_a_round_who_points_against_the_others_leaves_no_trace(guard):
    """Fault 4 by direction: four silos learn alike, b the contrary; the bits are those of a run without b."""

    def learning(silo, factor):
        def change(content):
            from fedmerge.wire.records import to_record

            common, own = tensors(7, factor), tensors(ord(silo), 0.1)
            content["arrays"] = to_record({name: common[name] + own[name] for name in common})
            return content

        return change

    names = ("a", "b", "c", "d")
    changes = {silo: learning(silo, -1.0 if silo == "b" else 1.0) for silo in names}
    strategy, result = run(node_of(changes), names=names, guard=guard)
    _, without = run(node_of({**changes, "b": lambda _: None}), names=names, guard=guard)
    assert bits(result.arrays) == bits(without.arrays)
    assert [(refusal.silo, refusal.code) for refusal in strategy.refused] == [("b", "reply/outlier")]
    assert "cosine -0.9" in strategy.refused[0].reason
