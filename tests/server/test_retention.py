"""Which rounds keep their tensors: all that a run may still go back to, and no others."""

from __future__ import annotations

import hypothesis.strategies as st
import pytest
from hypothesis import given

from fedmerge.config import defaults, read_config
from fedmerge.errors import ConfigError
from fedmerge.server.retention import Retention, kept, leans_on


def state(good: int | None, best: int | None) -> dict:
    forms = {"good": good, "best": best}
    return {"standing": {key: None if round is None else {"round": round} for key, round in forms.items()}}


@st.composite
def histories(draw: st.DrawFn) -> list[tuple[int, dict]]:
    """Rounds 1, 2, ... and their states: good and best stay, or become what the last round made."""
    states, good, best = [], None, None
    for number in range(1, draw(st.integers(1, 12)) + 1):
        good, best = (draw(st.sampled_from([before, number - 1])) for before in (good, best))
        states.append((number, state(good, best)))
    return states


@given(histories(), st.integers(2, 4))
def test_what_the_last_rounds_lean_on_is_there_and_nothing_else(history, rounds):
    retention, there = Retention(rounds), {0}
    for number, each in history:
        there = (there | {number}) - retention.closed((number, each))
        assert there == kept(dict(history[:number]), rounds)
        assert {number, number - 1} <= there


@given(histories(), st.integers(2, 4), st.data())
def test_a_run_that_was_interrupted_keeps_what_an_undisturbed_one_keeps(history, rounds, data):
    """Wherever it ended, and whatever it had not removed then."""
    stop, resumed = data.draw(st.integers(0, len(history))), Retention(rounds)
    there = {0, *range(1, stop + 1)} - resumed.closed((0, {}), *history[:stop])
    for number, each in history[stop:]:
        there = (there | {number}) - resumed.closed((number, each))
    assert there == kept(dict(history), rounds)


def test_all_is_kept_where_nothing_is_said():
    retention = Retention()
    assert all(retention.closed((number, state(0, 0))) == set() for number in range(1, 50))


def test_a_state_without_a_standing_leans_on_its_own_round():
    assert leans_on(3, {}) == {3} and leans_on(3, state(2, None)) == {2, 3}


@pytest.mark.parametrize(
    ("keys", "told"),
    [
        ({"run.keep-rounds": 1}, "run.keep-rounds = 1: expected 0, which keeps all, or at least 2"),
        ({"run.keep-rounds": -2}, "run.keep-rounds = -2: expected 0"),
        ({"run.keep-rounds": 3, "run.record": True}, "run.keep-rounds = 3 with run.record = true"),
    ],
)
def test_what_can_not_be_kept_is_refused(keys, told):
    with pytest.raises(ConfigError, match=told):
        read_config(defaults() | keys)
