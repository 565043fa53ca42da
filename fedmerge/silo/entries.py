"""What other packages add by entry points: loaders of data and partitions."""

from __future__ import annotations

from importlib.metadata import entry_points
from typing import Any

from fedmerge.errors import ConfigError, nearest


def entry_names(group: str) -> list[str]:
    """Names registered in an entry point group, sorted."""
    return sorted(entry_points(group=group).names)


def load_entry(group: str, name: str, key: str) -> Any:
    """The object that an installed package registered under a name.

    Args:
        group: such as "fedmerge.data".
        name: of the entry point.
        key: configuration key that asked for it, for the message.

    Raises:
        ConfigError: nothing is registered under the name, or it can't be imported.
    """
    found = entry_points(group=group, name=name)
    if not found:
        known = entry_names(group)
        end = nearest(name, known) if known else "no installed package registers any"
        raise ConfigError(f"{key}: no entry point {name!r} in the group {group!r}; {end}")
    try:
        return next(iter(found)).load()
    except (ImportError, AttributeError) as error:
        raise ConfigError(f"{key}: entry point {name!r} of {group!r} can't be loaded: {error}") from error
