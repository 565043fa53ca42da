"""Which entry is the k-th largest in magnitude: exact, in one pass and a bit.

The bits of a float32 without its sign order as its magnitude does. A sample of the entries brackets the
threshold; one pass counts what lies above the bracket and gathers what lies in it, and among those few the
threshold is found digit by digit. The pass also proves the bracket: where it missed, a histogram of all
entries takes its place, so that no estimate ever decides.
"""

from __future__ import annotations

import numpy as np
from numba import carray

from fedmerge.kernels.jit import bits_at, compiled
from fedmerge.kernels.lanes import HAS_LANES, LANES, gather_lanes

MAGNITUDE = np.int32(0x7FFFFFFF)
LEADING = 20
"""A magnitude's leading digit is what stands above these bits: its exponent and three bits more."""
DIGITS = 2048
STRIDE = 16
"""Every sixteenth entry is in the sample."""
SMALLEST_SAMPLED = 1 << 14
"""Below this many entries a sample saves nothing."""


@compiled
def threshold(address, size, count, digits, gathered):
    """What it takes to be among the `count` largest magnitudes.

    Args:
        address: of float32 values, finite.
        size: how many.
        count: in [1, size].
        digits: int64 scratch `(2048,)`.
        gathered: int32 scratch `(size + 16,)`.

    Returns:
        The bits of the smallest magnitude kept, and the index of the last entry of just that magnitude that
        is kept: of equal magnitudes those of lowest index are.
    """
    values = carray(bits_at(address), size)
    found, above = 0, -1
    if size >= SMALLEST_SAMPLED:
        low, high = _bracket(values, count, digits)
        found, above = _gather(address, size, low, high, gathered)
    if not above < count <= above + found:
        low = high = _leading(values, count, digits)
        found, above = _gather(address, size, low, high, gathered)
    bits, wanted, equal = _select(gathered, found, count - above, digits)
    if wanted == equal:
        return bits, size - 1
    return bits, _nth(values, bits, wanted)


@compiled
def thresholds(addresses, size, density, bits, last):
    """The thresholds of one tensor of all clients.

    Args:
        addresses: of each client's float32 values, int64 `(clients,)`.
        size: how many each has.
        density: share kept, exactly `max(1, int(density * size))`.
        bits: for what `threshold` finds, int32 `(clients,)`.
        last: likewise, int64 `(clients,)`.
    """
    digits = np.empty(DIGITS, np.int64)
    gathered = np.empty(size + LANES, np.int32)
    count = max(1, int(density * size))
    for client in range(addresses.size):
        bits[client], last[client] = threshold(addresses[client], size, count, digits, gathered)


@compiled
def _bracket(values, count, digits):
    """Leading digits between which a sample puts the threshold, with four standard errors to either side."""
    digits[:] = 0
    sampled = 0
    for index in range(0, values.size, STRIDE):
        digits[(values[index] & MAGNITUDE) >> LEADING] += 1
        sampled += 1
    share = count / values.size
    expected = share * sampled
    slack = 4 * np.sqrt(sampled * share * (1 - share)) + 2
    high = DIGITS - 1
    passed = digits[high]
    while high > 0 and passed < expected - slack:
        high -= 1
        passed += digits[high]
    low = high
    while low > 0 and passed < expected + slack:
        low -= 1
        passed += digits[low]
    return low, high


@compiled
def _leading(values, count, digits):
    """The leading digit of the threshold, by a histogram of all entries."""
    digits[:] = 0
    for index in range(values.size):
        digits[(values[index] & MAGNITUDE) >> LEADING] += 1
    digit = DIGITS - 1
    while digits[digit] < count:
        count -= digits[digit]
        digit -= 1
    return digit


@compiled
def _gather(address, size, low, high, gathered):
    """Magnitudes with a leading digit from `low` to `high`; how many, and how many lie above."""
    values = carray(bits_at(address), size)
    first = np.int32(low << LEADING)
    last = np.int32((high << LEADING) + ((1 << LEADING) - 1))
    found = 0
    above = 0
    whole = size - size % LANES if HAS_LANES else 0
    for index in range(0, whole, LANES):
        counts = gather_lanes(address + 4 * index, gathered.ctypes.data + 4 * found, first, last)
        found += counts & 0xFFFFFFFF
        above += counts >> 32
    for index in range(whole, size):
        bits = values[index] & MAGNITUDE
        gathered[found] = bits  # without a branch: what does not belong is written over
        above += bits > last
        found += (bits >= first) & (bits <= last)
    return found, above


@compiled
def _select(gathered, found, wanted, digits):
    """The `wanted`-th largest of the gathered, how many of that value are wanted, and how many there are."""
    prefix = 0
    equal = found
    for shift, width in ((20, 11), (10, 10), (0, 10)):
        digits[:] = 0
        for index in range(equal):
            digits[(gathered[index] >> shift) & ((1 << width) - 1)] += 1
        digit = (1 << width) - 1
        while digits[digit] < wanted:
            wanted -= digits[digit]
            digit -= 1
        kept = 0
        for index in range(equal):
            bits = gathered[index]
            gathered[kept] = bits
            kept += ((bits >> shift) & ((1 << width) - 1)) == digit
        equal = kept
        prefix |= digit << shift
    return prefix, wanted, equal


@compiled
def _nth(values, bits, wanted):
    """Index of the `wanted`-th entry of a magnitude."""
    for index in range(values.size):
        if values[index] & MAGNITUDE == bits:
            wanted -= 1
            if wanted == 0:
                return index
    return values.size - 1
