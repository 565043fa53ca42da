"""All randomness of a silo's training, from (seed, round, silo, stream).

What another silo drew before in the same process makes no difference.
"""

from __future__ import annotations

import hashlib
import json
import os
import random

import numpy as np
import torch


def derive(seed: int, round: int, silo: str, stream: str, purpose: str = "") -> int:
    """A 63-bit seed that depends on every argument.

    Example:
        >>> derive(0, 1, "a", "") == derive(0, 1, "a", "")
        True
        >>> derive(0, 1, "a", "") == derive(0, 2, "a", "")
        False
    """
    text = json.dumps([seed, round, silo, stream, purpose])
    return int.from_bytes(hashlib.blake2b(text.encode(), digest_size=8).digest(), "big") >> 1


def seed_everything(seed: int, round: int, silo: str, stream: str) -> None:
    """Seed Python's, numpy's and torch's generators on all devices; deterministic algorithms from here on."""
    value = derive(seed, round, silo, stream)
    random.seed(value)
    np.random.seed(value % 2**32)  # noqa: NPY002  third-party code draws from the global generator
    torch.manual_seed(value)
    use_deterministic_algorithms()


def use_deterministic_algorithms() -> None:
    """The same bits for the same input on one type of device; an operation that can't is an error."""
    # cuBLAS reads the variable when its first handle is made.
    os.environ.setdefault("CUBLAS_WORKSPACE_CONFIG", ":4096:8")
    torch.use_deterministic_algorithms(True)
    # Filling memory before it is written guards against operations that read what nobody wrote; none of the
    # models' do, and it took 5 % of a scoring. The module's property is unknown to torch's type hints.
    torch.utils.deterministic.fill_uninitialized_memory = False  # type: ignore[attr-defined]
