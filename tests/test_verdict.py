"""What Flower's status details can carry of an error, there and back."""

from __future__ import annotations

import pytest

from fedmerge import errors
from fedmerge.errors import FedMergeError, RoundFailed
from fedmerge.server_app.verdict import Verdict, spoken, verdict_of

CLASSES = [
    each for each in vars(errors).values() if isinstance(each, type) and issubclass(each, FedMergeError)
]


@pytest.mark.parametrize("kind", CLASSES, ids=lambda kind: kind.__name__)
def test_every_error_of_ours_is_a_verdict(kind):
    with pytest.raises(kind) as error, spoken():
        raise kind("round 2: too few;\nnothing was changed")
    details = f"ServerApp failed with exception: {error.value}"
    assert verdict_of(details) == Verdict(kind.__name__, "round 2: too few;\nnothing was changed")


def test_the_cause_is_kept():
    with pytest.raises(RoundFailed) as error, spoken():
        raise RoundFailed("too few")
    assert str(error.value.__cause__) == "too few"


def test_other_errors_pass_as_they_are():
    with pytest.raises(OSError, match=r"^no route$"), spoken():
        raise OSError("no route")


@pytest.mark.parametrize(
    "details",
    [
        "",
        "No heartbeat received from the task",
        "Task failed with unknown error.",
        "ServerApp failed with exception: [Errno 101] Network is unreachable",
        "ServerApp failed with exception: a RoundFailed: of somebody else's",
    ],
)
def test_what_is_no_verdict(details):
    assert verdict_of(details) is None
