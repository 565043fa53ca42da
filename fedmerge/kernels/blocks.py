"""The pass that merges: block by block, all clients of a block while it is in cache.

Each block goes through the stages of the composition in the same order with the same float64 operations:
what the trim or the drop leaves of each client, the vote, the sum and the divisor of those who agree, one
rounding. The loops run over coordinates innermost, so that they become vector instructions.
"""

from __future__ import annotations

import numpy as np
from numba import carray

from fedmerge.kernels.jit import bits_at, compiled, floats_at
from fedmerge.kernels.selection import MAGNITUDE

BLOCK = 512

LONG_BLOCK = 4096
"""Where one sum is all that must stay in cache: longer reads, which the CPU fetches ahead, 76 to 58 ms for
8 x 40 M values (AMD EPYC)."""

FIRST_MULTIPLIER = np.uint64(0xBF58476D1CE4E5B9)
SECOND_MULTIPLIER = np.uint64(0x94D049BB133111EB)


@compiled
def mean(addresses, start, stop, weights, factors, output):
    """`sum w tau`, times and over what `factors` says, of the coordinates `start` to `stop`.

    Args:
        addresses: of each client's float32 values, int64 `(clients,)`.
        start: first coordinate.
        stop: one after the last.
        weights: float64 `(clients,)`, all above 0.
        factors: a number that the sum is multiplied by, one that it is divided by, and the scales.
        output: address of the float32 result.
    """
    total = np.empty(LONG_BLOCK)
    for begin in range(start, stop, LONG_BLOCK):
        size = min(LONG_BLOCK, stop - begin)
        total[:size] = 0.0
        paired = addresses.size - addresses.size % 4
        for client in range(0, paired, 4):
            _add_four(addresses[client : client + 4] + 4 * begin, size, weights[client : client + 4], total)
        for client in range(paired, addresses.size):
            values = carray(floats_at(addresses[client] + 4 * begin), size)
            weight = weights[client]
            for index in range(size):
                total[index] += np.float64(values[index]) * weight
        _finish(total, size, factors, output + 4 * begin)


@compiled
def _add_four(addresses, size, weights, total):
    """Add four clients, one after the other: a sum is loaded and stored once for all of them."""
    first = carray(floats_at(addresses[0]), size)
    second = carray(floats_at(addresses[1]), size)
    third = carray(floats_at(addresses[2]), size)
    fourth = carray(floats_at(addresses[3]), size)
    a, b, c, d = weights[0], weights[1], weights[2], weights[3]
    for index in range(size):
        value = total[index] + np.float64(first[index]) * a
        value += np.float64(second[index]) * b
        value += np.float64(third[index]) * c
        total[index] = value + np.float64(fourth[index]) * d


@compiled
def _finish(total, size, factors, output):
    """Multiply, divide, scale and round one block."""
    merged = carray(floats_at(output), size)
    count, divisor = factors[0], factors[1]
    for index in range(size):
        total[index] = total[index] * count / divisor
    for scale in factors[2:]:
        for index in range(size):
            total[index] *= scale
    for index in range(size):
        merged[index] = np.float32(total[index])


@compiled
def trimmed(addresses, start, stop, bits, last, weights, factors, elect, output):
    """The same over each client's largest entries; of those who agree with the vote, where signs are elected.

    Args:
        addresses: see `mean`.
        start: see `mean`.
        stop: see `mean`.
        bits: of the smallest magnitude kept of each client, int32 `(clients,)`.
        last: index up to which entries of just that magnitude are kept, int64 `(clients,)`.
        weights: see `mean`.
        factors: see `mean`.
        elect: whether signs are elected.
        output: see `mean`.
    """
    left = np.empty((addresses.size, BLOCK))
    work = np.empty((3, BLOCK))
    for begin in range(start, stop, BLOCK):
        size = min(BLOCK, stop - begin)
        for client in range(addresses.size):
            kept = min(max(last[client] + 1 - begin, 0), size)
            address = addresses[client] + 4 * begin
            _trim(address, 0, kept, bits[client], left[client])
            _trim(address, kept, size, bits[client] + 1, left[client])
        _combine(left, size, weights, factors, elect, work, output + 4 * begin)


@compiled
def _trim(address, start, stop, bits, left):
    """Entries of at least a magnitude; the others become 0."""
    values = carray(floats_at(address + 4 * start), stop - start)
    magnitudes = carray(bits_at(address + 4 * start), stop - start)
    for index in range(stop - start):
        value = values[index] if (magnitudes[index] & MAGNITUDE) >= bits else np.float32(0)
        left[start + index] = np.float64(value)


@compiled
def dropped(addresses, start, stop, keys, density, weights, factors, elect, output):
    """The same over entries that are kept at random and divided by the density.

    Args:
        addresses: see `mean`.
        start: see `mean`.
        stop: see `mean`.
        keys: start and increment of each client's stream, uint64 `(clients, 2)`; number 0 of a stream
            belongs to the coordinate 0.
        density: probability of being kept.
        weights: see `mean`.
        factors: see `mean`.
        elect: whether signs are elected.
        output: see `mean`.
    """
    left = np.empty((addresses.size, BLOCK))
    work = np.empty((3, BLOCK))
    # A number k * 2**-53 is below the density where k is below this, exactly: all are powers of two apart.
    limit = np.uint64(np.ceil(density * 9007199254740992.0))
    for begin in range(start, stop, BLOCK):
        size = min(BLOCK, stop - begin)
        for client in range(addresses.size):
            state = keys[client, 0] + np.uint64(begin + 1) * keys[client, 1]
            address = addresses[client] + 4 * begin
            _drop(address, size, state, keys[client, 1], limit, density, left[client])
        _combine(left, size, weights, factors, elect, work, output + 4 * begin)


@compiled
def _drop(address, size, state, increment, limit, density, left):
    """Entries whose random number is below the limit, divided by the density; the others become 0."""
    values = carray(floats_at(address), size)
    for index in range(size):
        number = state + np.uint64(index) * increment
        number = (number ^ (number >> np.uint64(30))) * FIRST_MULTIPLIER
        number = (number ^ (number >> np.uint64(27))) * SECOND_MULTIPLIER
        number = (number ^ (number >> np.uint64(31))) >> np.uint64(11)
        left[index] = np.float64(values[index]) / density if number < limit else 0.0


@compiled
def _combine(left, size, weights, factors, elect, work, output):
    """What is left of all clients to one row."""
    vote, total, divisor = work[0], work[1], work[2]
    vote[:] = 0.0
    for client in range(weights.size):
        weight = weights[client]
        row = left[client]
        for index in range(size):
            vote[index] += row[index] * weight
    if not elect:
        _finish(vote, size, factors, output)
        return
    total[:] = 0.0
    divisor[:] = 0.0
    for client in range(weights.size):
        weight = weights[client]
        row = left[client]
        for index in range(size):
            agrees = row[index] * vote[index] > 0
            total[index] += row[index] * weight if agrees else 0.0
            divisor[index] += weight if agrees else 0.0
    for index in range(size):
        total[index] /= divisor[index] if divisor[index] > 0 else 1.0
    _finish(total, size, factors, output)
