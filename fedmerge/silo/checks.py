"""Checks of single settings: each names the configuration key as the user writes it.

`settings` is a frozen dataclass with a class variable `section`, the table of its keys.
"""

from __future__ import annotations

import math
from collections.abc import Sequence

from fedmerge.errors import ConfigError, nearest


def key_of(settings: object, field: str) -> str:
    """The configuration key of a field.

    Example:
        >>> from fedmerge.silo.settings import TrainSettings
        >>> key_of(TrainSettings(), "batch_size")
        'train.batch-size'
    """
    return f"{getattr(settings, 'section', 'run')}.{field.replace('_', '-')}"


def error(settings: object, field: str, expected: str) -> ConfigError:
    """The error for a field's value: key, value, what was expected."""
    return ConfigError(f"{key_of(settings, field)} = {getattr(settings, field)!r}: expected {expected}")


def integer(settings: object, field: str, least: int) -> None:
    """Raise ConfigError unless the field is an integer of at least `least`."""
    value = getattr(settings, field)
    if isinstance(value, bool) or not isinstance(value, int) or value < least:
        raise error(settings, field, f"an integer of at least {least}")


def number(
    settings: object,
    field: str,
    *,
    least: float = -math.inf,
    above: float = -math.inf,
    below: float = math.inf,
) -> None:
    """Raise ConfigError unless the field is a finite number within the bounds."""
    value = getattr(settings, field)
    numeric = isinstance(value, int | float) and not isinstance(value, bool) and math.isfinite(value)
    if not numeric or value < least or value <= above or value >= below:
        bounds = (("of at least", least), ("above", above), ("below", below))
        words = [f"{word} {bound:g}" for word, bound in bounds if math.isfinite(bound)]
        raise error(settings, field, f"a number {' and '.join(words)}")


def switch(settings: object, field: str) -> None:
    """Raise ConfigError unless the field is true or false."""
    if not isinstance(getattr(settings, field), bool):
        raise error(settings, field, "true or false")


def text(settings: object, field: str, *, empty: bool = False) -> None:
    """Raise ConfigError unless the field is text, with something in it unless `empty`."""
    value = getattr(settings, field)
    if not isinstance(value, str) or not (empty or value.strip()):
        raise error(settings, field, "text" if empty else "text that is not empty")


def choice(settings: object, field: str, known: Sequence[str]) -> None:
    """Raise ConfigError unless the field is one of the known values."""
    value = getattr(settings, field)
    if value not in known:
        raise error(settings, field, f"a known value; {nearest(str(value), known)}")
