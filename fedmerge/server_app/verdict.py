"""Whether a run that failed gave the verdict itself, or was cut off: what Flower's status details can carry.

Of an exception in a ServerApp, Flower keeps the text alone. So fedmerge's own errors are raised with their
class before the sentence, and whoever reads the details can tell "the quorum was not met" from a lost
SuperLink.
"""

from __future__ import annotations

import re
from collections.abc import Iterator
from contextlib import contextmanager
from dataclasses import dataclass

from fedmerge import errors
from fedmerge.errors import FedMergeError

_CLASSES = tuple(
    name
    for name, entry in vars(errors).items()
    if isinstance(entry, type) and issubclass(entry, FedMergeError)
)
_SPOKEN = re.compile(rf"failed with exception: ({'|'.join(_CLASSES)}): (.*)", re.DOTALL)


@dataclass(frozen=True)
class Verdict:
    """Why a run ended by its own decision.

    Args:
        kind: the class of the error: "RoundFailed", "ConfigError".
        sentence: what it says.
    """

    kind: str
    sentence: str


@contextmanager
def spoken() -> Iterator[None]:
    """Put the class before the sentence of an error of fedmerge's that passes."""
    try:
        yield
    except FedMergeError as error:
        raise type(error)(f"{type(error).__name__}: {error}") from error


def verdict_of(details: str) -> Verdict | None:
    """The verdict in Flower's status details; None where the run gave none.

    Example:
        >>> verdict_of("ServerApp failed with exception: RoundFailed: round 2: 1 of 3 silos answered")
        Verdict(kind='RoundFailed', sentence='round 2: 1 of 3 silos answered')
        >>> verdict_of("No heartbeat received from the task") is None
        True
    """
    found = _SPOKEN.search(details)
    return Verdict(found[1], found[2].strip()) if found else None
