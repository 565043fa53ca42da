"""Single values of a message, read without belief: a wrong type is a `WireError`, never a crash."""

from __future__ import annotations

import json
from collections.abc import Mapping
from typing import Any, TypeVar

from fedmerge.errors import WireError
from fedmerge.wire.schema import shown

LONGEST_SILO_NAME = 200
LONGEST_SENTENCE = 2000

Scalar = TypeVar("Scalar", str, int, float, bool)


def read(config: Mapping[str, Any], key: str, kind: type[Scalar], default: Scalar) -> Scalar:
    """The value of `key`, or `default` where it is absent; an int is taken for a float.

    Raises:
        WireError: a value of another type.

    Example:
        >>> read({"round": 3}, "round", int, 0), read({}, "silo", str, "")
        (3, '')
    """
    value = config.get(key, default)
    if kind is float and type(value) is int:
        value = float(value)
    if type(value) is not kind:
        raise WireError(f"message key {key!r} is {type(value).__name__}, expected {kind.__name__}")
    return value


def read_json(text: str, key: str) -> Any:
    """What a JSON text says.

    Raises:
        WireError: it is no JSON, or nested too deeply.
    """
    try:
        return json.loads(text)
    except (ValueError, RecursionError) as err:
        raise WireError(f"message key {key!r} is not JSON: {str(err)[:120]}") from None


def texts(value: object, key: str) -> tuple[str, ...]:
    """A JSON list of strings as a tuple.

    Raises:
        WireError: it is something else.
    """
    if not isinstance(value, list) or not all(isinstance(item, str) for item in value):
        raise WireError(f"message key {key!r} is not a JSON list of strings")
    return tuple(value)


def silo_name(name: str) -> str:
    """The name of a silo, if it may stand in logs and tables.

    Raises:
        WireError: it is too long or unprintable.
    """
    if len(name) > LONGEST_SILO_NAME or not name.isprintable():
        raise WireError(
            f"the silo name {shown(name)} has {len(name)} characters or an unprintable one; "
            f"expected at most {LONGEST_SILO_NAME} printable ones"
        )
    return name
