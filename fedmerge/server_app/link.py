"""The link to Flower's own server: it may be silent for a while, but not for ever."""

from __future__ import annotations

from flwr.serverapp import Grid

SILENCE_SECONDS = 600.0
"""A SuperLink that restarts is back in less; one that stays away ends the run."""


def bound_retries(grid: Grid, seconds: float = SILENCE_SECONDS) -> None:
    """Let a request that the SuperLink does not answer fail after `seconds`; Flower itself retries for ever.

    The name that this touches is private; tests/test_link.py is its contract test.
    """
    retries = getattr(grid, "_retry_invoker", None)
    if retries is not None:
        retries.max_time = seconds
