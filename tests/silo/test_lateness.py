from __future__ import annotations

import time

import pytest

from fedmerge.errors import PolicyError
from fedmerge.silo.lateness import Lifetime


def test_time_counts_from_when_the_message_was_made() -> None:
    assert Lifetime(created=1000.0, seconds=100.0, arrived=1030.0).left(60.0) == pytest.approx(30.0, abs=1)
    assert Lifetime(created=1000.0, seconds=100.0, arrived=1030.0).left(0.0) == pytest.approx(60.0, abs=1)
    assert Lifetime(created=1000.0, seconds=100.0, arrived=1030.0).left(500.0) == pytest.approx(70.0, abs=1)


def test_time_that_passes_here_counts_too() -> None:
    since = time.monotonic() - 50
    assert Lifetime(1000.0, 100.0, arrived=1000.0, since=since).left(60.0) == pytest.approx(10.0, abs=1)


def test_a_server_whose_clock_is_ahead_gives_no_time_away() -> None:
    assert Lifetime(created=2000.0, seconds=100.0, arrived=1000.0).left(60.0) == pytest.approx(60.0, abs=1)


@pytest.mark.parametrize(("age", "deadline"), [(61, 60.0), (91, 0.0), (101, 500.0)])
def test_a_message_that_nobody_waits_for_any_more(age: int, deadline: float) -> None:
    with pytest.raises(PolicyError, match=rf"the message is {age} s old and had \d+ s") as caught:
        Lifetime(created=1000.0, seconds=100.0, arrived=1000.0 + age).left(deadline)
    assert caught.value.code == "late"
