"""The kinds of refusals: a code as one of a few words, for counters and dashboards.

A code can be a silo's own, "policy/steps", and a silo could make up new ones without end; the labels of a
metric must be few. What no row knows is "other". The codes stand in `fedmerge.server.refusing`.
"""

from __future__ import annotations

OTHER = "other"

_OURS = (
    "unsigned", "forged", "stranger", "revoked", "silo", "run", "stale", "round", "base", "replayed",
    "duplicate", "unasked", "too-large", "records", "tensors", "values", "weight", "outlier", "broken",
)  # fmt: skip
_HEADS = {"flower": "flower", "policy": "policy", "silo": "failed"}

KINDS = (*_OURS, *_HEADS.values(), OTHER)
"""Every kind there is."""


def kind_of(code: str) -> str:
    """The kind of a refusal.

    Args:
        code: as `Refusal.code` has it.

    Returns:
        One of `KINDS`.

    Example:
        >>> kind_of("reply/forged"), kind_of("policy/max-rounds"), kind_of("moon/full")
        ('forged', 'policy', 'other')
    """
    head, _, tail = code.partition("/")
    if head == "reply" and tail in _OURS:
        return tail
    return _HEADS.get(head, OTHER)
