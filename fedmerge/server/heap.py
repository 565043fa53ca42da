"""Memory that is free goes back to the machine.

The C library keeps blocks of up to 32 MB for later once one of them was freed, in a heap for each thread. A
server that takes in a hundred megabytes a reply, in pieces of 5 MB pulled by a dozen threads, then holds
several times what it uses.
"""

from __future__ import annotations

import ctypes

_MMAP_THRESHOLD, _ARENA_MAX = -3, -8  # of <malloc.h>
SMALLEST = 1 << 16
"""Bytes of a block from which on it has pages of its own."""


def return_freed_memory() -> bool:
    """Give large blocks pages of their own, for as long as the process lives.

    Returns:
        Whether the C library could be told so; where it is not glibc nothing happens.
    """
    mallopt = getattr(ctypes.CDLL(None), "mallopt", None)
    return bool(mallopt and mallopt(_MMAP_THRESHOLD, SMALLEST) and mallopt(_ARENA_MAX, 2))
