"""Single values of a message, read without belief: a wrong type is a `WireError`, never a crash."""

from __future__ import annotations

import json
from collections.abc import Mapping
from typing import Any, TypeVar

from fedmerge.errors import WireError
from fedmerge.wire.schema import shown

LONGEST_SILO_NAME = 200
LONGEST_SENTENCE = 2000
LONGEST_LABEL = 200
MOST_LABELS = 10_000
"""Of one silo: each is a row of the head, at the server and at every silo."""
LONGEST_VERSION = 100
MOST_VERSIONS = 100

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


def label_names(value: object) -> tuple[str, ...]:
    """A silo's labels, if a head may have them as its outputs, and logs and tables as text.

    Raises:
        WireError: too many; or one that is empty, too long or unprintable, as where the label's column is one
            of free text.

    Example:
        >>> label_names(["down", "up"])
        ('down', 'up')
    """
    names = texts(value, "labels")
    if len(names) > MOST_LABELS:
        raise WireError(f"message key 'labels' lists {len(names)} labels, expected at most {MOST_LABELS}")
    for name in names:
        if not name.strip() or len(name) > LONGEST_LABEL or not name.isprintable():
            raise WireError(
                f"message key 'labels': {shown(name)} has {len(name)} characters; expected 1 to "
                f"{LONGEST_LABEL} printable ones (is data.label the column of the label?)"
            )
    return names


def versions_of(value: object) -> dict[str, str]:
    """Versions of packages, by name.

    Raises:
        WireError: no table of short printable texts.
    """
    if not isinstance(value, dict) or len(value) > MOST_VERSIONS:
        raise WireError(f"message key 'versions' is no JSON table of at most {MOST_VERSIONS} entries")
    for text in (*value, *value.values()):
        if not isinstance(text, str) or len(text) > LONGEST_VERSION or not text.isprintable():
            raise WireError(
                f"message key 'versions' holds {shown(str(text)[:LONGEST_VERSION])}; "
                f"expected texts of at most {LONGEST_VERSION} printable characters"
            )
    return dict(value)
