"""The kinds of refusals: a sentence of the guard as one of a few words, for counters and dashboards.

A sentence quotes names and numbers that a silo sent; a label of a metric must not. The table is read from
above, and what no row knows is "other".
"""

from __future__ import annotations

import re

OTHER = "other"

_TABLE = (
    ("policy", r"policy/"),
    ("revoked", r"\brevoked\b"),
    ("replay", r"\bnonce\b|replay|\bstale\b|\bissued\b"),
    ("signature", r"\bsignature\b|\bsigned\b|unsigned|\bforged\b"),
    ("unknown-silo", r"\broster\b|calls itself"),
    ("duplicate", r"a second reply|another node answered under the same name"),
    ("round", r"answers no message of round|it is of round|it is of run|of another run"),
    ("base", r"its base is another|\bfingerprint\b"),
    ("lost", r"^Flower error [345]\b"),
    ("crash", r"^Flower error|^failed with"),
    ("outlier", r"far longer than the others'"),
    ("not-finite", r"\bNaN\b.* infinite of"),
    ("weight", r"num-examples|weight cap"),
    ("size", r"bytes of values|above the cap|too large"),
    ("statistics", r"it carries no|is negative in|is not symmetric|has the eigenvalue"),
    ("tensors", r"has shape|the record|, expected |NumPy|array record|claims dtype|what can travel"),
    ("message", r"message key|silo name|metric record|config record|can't be read"),
)

KINDS = (*(kind for kind, _ in _TABLE), OTHER)
"""Every kind there is, in the order of the table."""

_QUOTED = re.compile(r"'[^']*'")  # a silo chose it, and could steer the counters with it
_OURS = re.compile(r"'(num-examples|policy/[a-z-]+)'")
_PATTERNS = tuple((kind, re.compile(pattern)) for kind, pattern in _TABLE)


def kind_of(reason: str) -> str:
    """The kind of a refusal.

    Args:
        reason: the sentence, as `Refusal.reason` has it.

    Returns:
        One of `KINDS`.

    Example:
        >>> kind_of("its base is another: fingerprint 'ab', expected 'cd'"), kind_of("the moon is full")
        ('base', 'other')
    """
    ours = _QUOTED.sub(lambda quoted: quoted[0] if _OURS.fullmatch(quoted[0]) else "''", reason)
    return next((kind for kind, pattern in _PATTERNS if pattern.search(ours)), OTHER)
