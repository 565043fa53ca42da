"""Adapters that were trained apart, told as deltas: of any rank and scaling, from any start.

A delta of factors is trained minus received, `dA = A - A_0` and `dB = B - B_0`. For an adapter that started
somewhere else that is no step that anybody made, and yet `B_0 + dB` times `A_0 + dA` is the adapter's own
product: in `product()`, `core()` and `stacked()` the delta stands for the adapter's true update, whatever its
start. In `factors()` it means something only where the adapter started from what was received.
"""

from __future__ import annotations

import math
from dataclasses import replace

import torch
from torch import Tensor

from fedmerge.adapters.adapter import Adapter, Lora, rounded
from fedmerge.adapters.checks import RANK_AXES, check_names
from fedmerge.adapters.pairs import A_SUFFIX, B_SUFFIX, split_names
from fedmerge.errors import AdapterMismatch

LEAST_COSINE = 0.25
"""Between the A of an adapter and the A that it started from. Two drawn independently have one of 0 within
1 / sqrt(numbers in A), some .004; four silos had .74 to .76 after their training on the built-in base."""


def padded(adapter: Adapter, rank: int) -> Adapter:
    """The same adapter at a larger rank: A has further rows of 0, B further columns of 0.

    Every product stays what it was, to the last bit: the further terms are 0, and the scaling is kept by
    alpha.

    Args:
        adapter: with LoRA settings.
        rank: from the adapter's own.

    Returns:
        The adapter at that rank; the very same where the rank is its own.

    Raises:
        AdapterMismatch: no LoRA settings, or a smaller rank.

    Example:
        >>> pair = {"q.lora_A.weight": torch.ones(1, 2), "q.lora_B.weight": torch.ones(2, 1)}
        >>> wide = padded(Adapter(pair, Lora(rank=1, alpha=2)), 2)
        >>> wide.tensors["q.lora_A.weight"].tolist(), wide.lora.scaling
        ([[1.0, 1.0], [0.0, 0.0]], 2.0)
    """
    lora = _lora(adapter)
    if rank == lora.rank:
        return adapter
    if rank < lora.rank:
        raise AdapterMismatch(
            f"an adapter of rank {lora.rank} can't be padded to rank {rank}, which is smaller"
        )
    tensors = {}
    for name, tensor in adapter.tensors.items():
        axis = RANK_AXES.get(name[-len(A_SUFFIX) :])
        tensors[name] = tensor if axis is None else _widened(tensor, axis, rank)
    return replace(adapter, tensors=tensors, lora=lora.of_rank(rank))


def fitted(adapter: Adapter, lora: Lora) -> Adapter:
    """The same adapter in other settings: padded, and B times what the scalings differ by.

    Args:
        adapter: with LoRA settings, of a rank up to that of `lora`.
        lora: rank and scaling that the result has.

    Returns:
        An adapter of the same products: to the bit where the scalings are alike or differ by a power of 2.

    Raises:
        AdapterMismatch: no LoRA settings, or a rank above that of `lora`.
    """
    ratio = _lora(adapter).scaling / lora.scaling
    wide = padded(adapter, lora.rank)
    tensors = {
        name: rounded(tensor.to(torch.float64) * ratio, tensor.dtype)
        if ratio != 1 and name.endswith(B_SUFFIX)
        else tensor
        for name, tensor in wide.tensors.items()
    }
    return replace(wide, tensors=tensors, lora=replace(lora, target_modules=_lora(adapter).target_modules))


def delta_to(adapter: Adapter, received: Adapter, what: str) -> Adapter:
    """The delta that leads from a received adapter to one that was trained anywhere.

    Args:
        adapter: of a rank up to the received one's.
        received: what a round began with.
        what: to call the adapter in an error.

    Returns:
        The difference of factors and of other tensors, each rounded once to the received dtype.

    Raises:
        AdapterMismatch: other tensors, other shapes, or a rank above the received one's.

    Example:
        >>> received = Adapter({"x": torch.tensor([1.0])}, Lora(rank=1, alpha=1))
        >>> delta_to(Adapter({"x": torch.tensor([3.0])}, Lora(rank=1, alpha=1)), received, "site-a").tensors
        {'x': tensor([2.])}
    """
    check_names(what, adapter.tensors, "the received adapter", received.tensors)
    given = fitted(adapter, _lora(received))
    tensors = {}
    for name, start in received.tensors.items():
        tensor = given.tensors[name]
        if tensor.shape != start.shape:
            raise AdapterMismatch(
                f"{what}: {name!r} has shape {tuple(tensor.shape)}, the received adapter has "
                f"{tuple(start.shape)}"
            )
        tensors[name] = rounded(tensor.to(torch.float64) - start.to(torch.float64), start.dtype)
    return Adapter(tensors, received.lora, dict(adapter.metadata))


def nothing_like(adapter: Adapter) -> Adapter:
    """The zero adapter of the same tensors: what adapters of other starts have in common."""
    return replace(
        adapter, tensors={name: torch.zeros_like(value) for name, value in adapter.tensors.items()}
    )


def started_from(adapter: Adapter, received: Adapter) -> bool:
    """Whether an adapter was trained from a received one, judged by the direction of all its A together.

    Training turns A by less than a right angle, and drawing it anew does not (`LEAST_COSINE`).

    Args:
        adapter: trained.
        received: what it may have started from; an adapter of another rank did not.

    Example:
        >>> drawn = [torch.randn(8, 64, generator=torch.Generator().manual_seed(seed)) for seed in (0, 1)]
        >>> b = torch.zeros(4, 8)
        >>> one, two = (Adapter({"q.lora_A.weight": a, "q.lora_B.weight": b}, Lora(8, 8)) for a in drawn)
        >>> started_from(one, one), started_from(two, one)
        (True, False)
    """
    names = [pair.a for pair in split_names(received.tensors)[0]]
    pairs = [(adapter.tensors.get(name), received.tensors[name]) for name in names]
    known = [(given.double(), start.double()) for given, start in pairs if given is not None]
    if len(known) < len(pairs) or any(given.shape != start.shape for given, start in known):
        return False
    if not known:
        return True  # no factor is drawn: what else there is starts from zero everywhere
    inner = sum(float((given * start).sum()) for given, start in known)
    squares = [sum(float(pair[side].square().sum()) for pair in known) for side in (0, 1)]
    return inner > LEAST_COSINE * math.sqrt(squares[0] * squares[1])


def _widened(tensor: Tensor, axis: int, rank: int) -> Tensor:
    shape = list(tensor.shape)
    shape[axis] = rank - shape[axis]
    return torch.cat([tensor, tensor.new_zeros(shape)], dim=axis)


def _lora(adapter: Adapter) -> Lora:
    if adapter.lora is None:
        raise AdapterMismatch("the adapter has no LoRA settings, so its rank and scaling are unknown")
    return adapter.lora
