"""A store of what is expensive to compute again, bounded in bytes."""

from __future__ import annotations

import logging
from collections import OrderedDict
from collections.abc import Callable, Hashable
from typing import Generic, TypeVar

Value = TypeVar("Value")

logger = logging.getLogger(__name__)


class Memory(Generic[Value]):
    """Keeps values up to a total size and forgets those unused for longest.

    Args:
        limit_bytes: the most that is kept.
        size: bytes of a value.

    Example:
        >>> memory = Memory(10, len)
        >>> memory.get("a", lambda: "12345"), memory.get("a", lambda: "never made")
        ('12345', '12345')
    """

    def __init__(self, limit_bytes: int, size: Callable[[Value], int]) -> None:
        """Start empty."""
        self._limit = limit_bytes
        self._size = size
        self._values: OrderedDict[Hashable, Value] = OrderedDict()
        self._sizes: dict[Hashable, int] = {}

    def get(self, key: Hashable, make: Callable[[], Value]) -> Value:
        """The value of a key, made where it is not in store."""
        if key in self._values:
            self._values.move_to_end(key)
            return self._values[key]
        value = make()
        self._keep(key, value)
        return value

    def _keep(self, key: Hashable, value: Value) -> None:
        size = self._size(value)
        if size > self._limit:
            logger.warning(
                "%s takes %d bytes, more than the %d kept: it is made at each use", key, size, self._limit
            )
            return
        self._values[key], self._sizes[key] = value, size
        while sum(self._sizes.values()) > self._limit:
            oldest, _ = self._values.popitem(last=False)
            del self._sizes[oldest]
