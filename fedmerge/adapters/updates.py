"""The true updates of one LoRA pair, as products that are never formed.

With received factors `A_0, B_0` and a delta `dA_i, dB_i`, silo i trained `A_i = A_0 + dA_i`, `B_i = B_0 +
dB_i`, and its update of the module's weight is

    tau_i = s (B_i A_i - B_0 A_0) = s [B_0, dB_i] [dA_i; A_i]

The right-hand form has no cancellation, however small the deltas are against what was received. Where nothing
was received (offline), `A_0` and `B_0` have rank 0 and the delta is the adapter: `tau_i = s_i B_i A_i`.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass

import torch
from torch import Tensor

from fedmerge.adapters.adapter import Adapter, Lora
from fedmerge.adapters.pairs import Pair
from fedmerge.errors import AdapterMismatch


@dataclass(frozen=True, eq=False)
class Updates:
    """One module's received factors and the clients' deltas of them, float64 on one device.

    Args:
        module: the module's name.
        received: `A_0` (rank, inputs) and `B_0` (outputs, rank); rank 0 where nothing was received.
        deltas: `dA_i` and `dB_i` of each client.
        scalings: lora_scaling of each client; with received factors all the same.
    """

    module: str
    received: tuple[Tensor, Tensor]
    deltas: tuple[tuple[Tensor, Tensor], ...]
    scalings: tuple[float, ...]

    @property
    def shape(self) -> tuple[int, int]:
        """Shape of the module's weight: (outputs, inputs)."""
        return self.received[1].shape[0], self.received[0].shape[1]

    def left(self, client: int) -> Tensor:
        """`s [B_0, dB_i]`, (outputs, ranks)."""
        return self.scalings[client] * torch.cat([self.received[1], self.deltas[client][1]], dim=1)

    def right(self, client: int) -> Tensor:
        """`[dA_i; A_i]`, (ranks, inputs)."""
        received, delta = self.received[0], self.deltas[client][0]
        return torch.cat([delta, received + delta]) if len(received) else delta

    def values(self, client: int, start: int, stop: int) -> Tensor:
        """Flat coordinates `start` to `stop` of one client's update, by forming only the rows they lie in."""
        inputs = self.shape[1]
        first, last = start // inputs, -(-stop // inputs)
        rows = (self.left(client)[first:last] @ self.right(client)).reshape(-1)
        return rows[start - first * inputs : stop - first * inputs]

    def before(self) -> Tensor:
        """`s B_0 A_0`, dense (outputs, inputs)."""
        a, b = self.received
        return self.scalings[0] * (b @ a)

    def bases(self) -> tuple[Tensor, Tensor]:
        """`[B_0, dB_1, ...]` (outputs, p) and `[A_0; dA_1; ...]` (p, inputs): all updates lie between."""
        left = torch.cat([self.received[1], *(b for _, b in self.deltas)], dim=1)
        return left, torch.cat([self.received[0], *(a for a, _ in self.deltas)])

    def core(self, coefficients: Sequence[float]) -> Tensor:
        """The `(p, p)` core of `s B_0 A_0 + sum c_i tau_i` between the bases.

        From `tau_i = s (B_0 dA_i + dB_i A_0 + dB_i dA_i)`: s times the identity in the received block, and
        c_i s where a client's block meets itself and the received one.
        """
        ranks = [len(self.received[0]), *(len(a) for a, _ in self.deltas)]
        core = self.received[0].new_zeros(sum(ranks), sum(ranks))
        received = torch.arange(ranks[0])
        core[received, received] = self.scalings[0]
        first = ranks[0]
        for coefficient, scaling, rank in zip(coefficients, self.scalings, ranks[1:], strict=True):
            own = torch.arange(first, first + rank)
            core[own, own] = coefficient * scaling
            if ranks[0]:
                core[own, received] = core[received, own] = coefficient * scaling
            first += rank
        return core


def updates_of(
    pair: Pair, received: Adapter | None, deltas: Sequence[Adapter], device: torch.device
) -> Updates:
    """Take one pair out of adapters that all have LoRA settings.

    Raises:
        AdapterMismatch: factors whose shapes do not fit, or whose rank is not that of the LoRA settings.
    """
    factors = [_float64(pair, delta, device) for delta in deltas]
    if received is not None:
        start = _float64(pair, received, device)
    else:
        a, b = factors[0]
        start = a.new_zeros(0, a.shape[1]), b.new_zeros(b.shape[0], 0)
    return Updates(
        pair.module, start, tuple(factors), tuple(lora_settings(delta).scaling for delta in deltas)
    )


def _float64(pair: Pair, adapter: Adapter, device: torch.device) -> tuple[Tensor, Tensor]:
    a, b = pair.factors(adapter.tensors)
    rank = lora_settings(adapter).rank
    if len(a) != rank:
        raise AdapterMismatch(
            f"{pair.module!r}: the factors have rank {len(a)}, the LoRA settings say {rank}"
        )
    return a.detach().to(device, torch.float64), b.detach().to(device, torch.float64)


def lora_settings(adapter: Adapter) -> Lora:
    """The LoRA settings of an adapter that must have some.

    Raises:
        AdapterMismatch: there are none, so that its scaling is not known.
    """
    if adapter.lora is None:
        raise AdapterMismatch(
            "product space needs the LoRA scaling, and neither a received adapter nor this delta has LoRA "
            "settings: give Adapter(tensors, lora=Lora(rank=..., alpha=...)) instead of a plain dict"
        )
    return adapter.lora


def widest_lora(adapters: Sequence[Adapter]) -> Lora:
    """What adapters of their own are merged into: the settings of the largest rank, all target modules."""
    loras = [lora_settings(adapter) for adapter in adapters]
    widest = max(loras, key=lambda lora: (lora.rank, lora.scaling, lora.rslora))
    modules = tuple(sorted({module for lora in loras for module in lora.target_modules}))
    return Lora(widest.rank, widest.alpha, widest.rslora, modules)
