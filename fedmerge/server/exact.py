"""Values to JSON and back without a bit lost, and without the times, which are never the same twice."""

from __future__ import annotations

import math
from collections.abc import Mapping
from typing import Any

TIMES = "seconds"
"""The key of every time: of a round's phases, of a merge, of a silo's training."""

_NUMBER = "float"


def encoded(value: Any) -> Any:
    """Plain values for JSON: standard JSON has no NaN and no infinity, so that these stand as text.

    Example:
        >>> encoded({"a": (1.5, float("nan"))})
        {'a': [1.5, {'float': 'nan'}]}
    """
    if isinstance(value, Mapping):
        return {str(key): encoded(item) for key, item in value.items()}
    if isinstance(value, list | tuple):
        return [encoded(item) for item in value]
    if isinstance(value, float) and not math.isfinite(value):
        return {_NUMBER: str(value)}
    return value


def decoded(value: Any) -> Any:
    """What `encoded` was given; tuples come back as lists.

    Example:
        >>> decoded({"a": [1.5, {"float": "-inf"}]})
        {'a': [1.5, -inf]}
    """
    if isinstance(value, Mapping):
        if value.keys() == {_NUMBER} and isinstance(value[_NUMBER], str):
            return float(value[_NUMBER])
        return {key: decoded(item) for key, item in value.items()}
    return [decoded(item) for item in value] if isinstance(value, list) else value


def timeless(value: Any) -> Any:
    """The value without its times, at any depth.

    Example:
        >>> timeless({"round": 1, "seconds": {"train": 2.0}, "merge": {"seconds": 0.1, "left_out": 0}})
        {'round': 1, 'merge': {'left_out': 0}}
    """
    if isinstance(value, Mapping):
        return {key: timeless(item) for key, item in value.items() if key != TIMES}
    return [timeless(item) for item in value] if isinstance(value, list | tuple) else value


def timed(value: Any, line: Any) -> Any:
    """The value with the times that another telling of it has.

    Example:
        >>> timed({"round": 1, "merge": {}}, {"seconds": {"train": 2.0}, "merge": {"seconds": 0.1}})
        {'round': 1, 'merge': {'seconds': 0.1}, 'seconds': {'train': 2.0}}
    """
    if not isinstance(value, Mapping) or not isinstance(line, Mapping):
        return value
    times = {TIMES: line[TIMES]} if TIMES in line else {}
    return {key: timed(item, line.get(key)) for key, item in value.items()} | times
