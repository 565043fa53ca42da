"""Random numbers that depend on what is drawn for, never on device, order or chunking.

A counter-based generator: the number of element `i` is a function of (seed, round, silo, tensor, i) alone.
SplitMix64 is used because it needs nothing but 64-bit integer arithmetic, which every device does alike;
start and increment of each stream come from BLAKE2b.

Reference:
    Steele, Lea, Flood, "Fast Splittable Pseudorandom Number Generators", OOPSLA 2014.
    Salmon et al., "Parallel Random Numbers: As Easy as 1, 2, 3", SC 2011 (why a counter).
"""

from __future__ import annotations

import hashlib
import json

import torch
from torch import Tensor

# The multipliers of SplitMix64's finaliser, as signed 64-bit numbers: torch's int64 wraps around as uint64
# would.
_FIRST_MULTIPLIER = 0xBF58476D1CE4E5B9 - 2**64
_SECOND_MULTIPLIER = 0x94D049BB133111EB - 2**64


def stream_key(seed: int, round: int, silo: str, tensor: str) -> tuple[int, int]:
    """Start and odd increment of the stream of one silo's tensor in one round.

    Args:
        seed: the run's seed.
        round: the round's number.
        silo: the silo's name.
        tensor: the tensor's name.

    Returns:
        Two signed 64-bit integers.

    Example:
        >>> stream_key(0, 1, "a", "x") == stream_key(0, 1, "a", "x") != stream_key(0, 1, "b", "x")
        True
    """
    text = json.dumps([int(seed), int(round), silo, tensor]).encode()
    digest = hashlib.blake2b(text, digest_size=16, person=b"fedmerge").digest()
    start = int.from_bytes(digest[:8], "little", signed=True)
    increment = int.from_bytes(digest[8:], "little", signed=True) | 1
    return start, increment


def uniform_stream(key: tuple[int, int], offset: int, count: int, device: torch.device | str) -> Tensor:
    """Numbers `offset` to `offset + count` of a stream.

    Args:
        key: from `stream_key`.
        offset: index of the first number.
        count: how many.
        device: where to make them; the bits are the same anywhere.

    Returns:
        float64 `(count,)`, uniform in [0, 1), multiples of 2**-53.

    Example:
        >>> key = stream_key(0, 1, "a", "x")
        >>> whole = uniform_stream(key, 0, 10, "cpu")
        >>> bool((whole[4:] == uniform_stream(key, 4, 6, "cpu")).all())
        True
    """
    start, increment = key
    state = torch.arange(offset + 1, offset + count + 1, dtype=torch.int64, device=device)
    state.mul_(increment).add_(start)
    state.bitwise_xor_(_shift_right(state, 30)).mul_(_FIRST_MULTIPLIER)
    state.bitwise_xor_(_shift_right(state, 27)).mul_(_SECOND_MULTIPLIER)
    state.bitwise_xor_(_shift_right(state, 31))
    return _shift_right(state, 11).to(torch.float64).mul_(2.0**-53)


def _shift_right(state: Tensor, bits: int) -> Tensor:
    """Shift with zeros coming in; torch's `>>` repeats the sign."""
    return (state >> bits).bitwise_and_((1 << (64 - bits)) - 1)
