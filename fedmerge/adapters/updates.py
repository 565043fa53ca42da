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
from functools import cached_property

import torch
from torch import Tensor

from fedmerge.adapters.adapter import Adapter, Lora
from fedmerge.adapters.pairs import Pair
from fedmerge.errors import AdapterMismatch

ROWS = 64
"""Of a dense update, formed at once: 2 MB at 4096 inputs."""


@dataclass(frozen=True, eq=False)
class Updates:
    """One module's received factors and the clients' deltas of them, float64 on one device.

    All factors lie in two matrices, made once: a fresh float64 copy of them costs as much as a product.

    Args:
        module: the module's name.
        stacked: `[B_0, dB_1, ...]` (outputs, p) and `[A_0; dA_1; ...]` (p, inputs).
        ranks: of the received factors, 0 where nothing was received, and of each client's.
        scalings: lora_scaling of each client; with received factors all the same.
    """

    module: str
    stacked: tuple[Tensor, Tensor]
    ranks: list[int]
    scalings: tuple[float, ...]

    @cached_property
    def received(self) -> tuple[Tensor, Tensor]:
        """`A_0` (rank, inputs) and `B_0` (outputs, rank); rank 0 where nothing was received."""
        left, right = self.stacked
        return right[: self.ranks[0]], left[:, : self.ranks[0]]

    @cached_property
    def deltas(self) -> tuple[tuple[Tensor, Tensor], ...]:
        """`dA_i` and `dB_i` of each client."""
        left, right = self.stacked
        parts = zip(torch.split(right, self.ranks), torch.split(left, self.ranks, dim=1), strict=True)
        return tuple(parts)[1:]

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

    def values(self, client: int, start: int, stop: int, dtype: torch.dtype) -> Tensor:
        """Flat coordinates `start` to `stop` of one client's update, by forming only the rows they lie in.

        Formed in float64, a few rows at a time so that these stay in cache, and rounded once.
        """
        inputs = self.shape[1]
        first, last = start // inputs, -(-stop // inputs)
        left, right = self.left(client), self.right(client)
        rows = torch.empty(last - first, inputs, dtype=dtype, device=left.device)
        for row in range(first, last, ROWS):
            rows[row - first : row - first + ROWS] = left[row : min(row + ROWS, last)] @ right
        return rows.reshape(-1)[start - first * inputs : stop - first * inputs]

    def add_before(self, matrix: Tensor) -> None:
        """Add `s B_0 A_0` to a dense float64 matrix (outputs, inputs), in place."""
        a, b = self.received
        if len(a):
            matrix.addmm_(b, a, alpha=self.scalings[0])

    def bases(self) -> tuple[Tensor, Tensor]:
        """`[B_0, dB_1, ...]` (outputs, p) and `[A_0; dA_1; ...]` (p, inputs): all updates lie between."""
        return self.stacked

    def cores(self, left: Tensor, right: Tensor) -> Tensor:
        """Each client's update between orthonormal bases, `(clients, p, q)`.

        Args:
            left: the columns of `bases()[0]` in its orthonormal basis, `(p, ranks)`.
            right: the rows of `bases()[1]` in theirs, `(q, ranks)`.
        """
        ranks = self.ranks
        (b_0, *b), (a_0, *a) = torch.split(left, ranks, dim=1), torch.split(right, ranks, dim=1)
        cores = []
        for own_b, own_a, scaling in zip(b, a, self.scalings, strict=True):
            core = own_b @ own_a.T
            if ranks[0]:
                core += b_0 @ own_a.T + own_b @ a_0.T
            cores.append(scaling * core)
        return torch.stack(cores)

    def core(self, coefficients: Sequence[float]) -> Tensor:
        """The `(p, p)` core of `s B_0 A_0 + sum c_i tau_i` between the bases.

        From `tau_i = s (B_0 dA_i + dB_i A_0 + dB_i dA_i)`: s times the identity in the received block, and
        c_i s where a client's block meets itself and the received one.
        """
        ranks = self.ranks
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
    adapters = [*([] if received is None else [received]), *deltas]
    factors = [_factors(pair, adapter) for adapter in adapters]
    ranks = [len(a) for a, _ in factors]
    left = torch.empty(factors[0][1].shape[0], sum(ranks), dtype=torch.float64, device=device)
    right = torch.empty(sum(ranks), factors[0][0].shape[1], dtype=torch.float64, device=device)
    for (a, b), rows, columns in zip(
        factors, torch.split(right, ranks), torch.split(left, ranks, dim=1), strict=True
    ):
        rows.copy_(a.detach())
        columns.copy_(b.detach())
    return Updates(
        pair.module,
        (left, right),
        ranks if received is not None else [0, *ranks],
        tuple(lora_settings(delta).scaling for delta in deltas),
    )


def _factors(pair: Pair, adapter: Adapter) -> tuple[Tensor, Tensor]:
    a, b = pair.factors(adapter.tensors)
    rank = lora_settings(adapter).rank
    if len(a) != rank:
        raise AdapterMismatch(
            f"{pair.module!r}: the factors have rank {len(a)}, the LoRA settings say {rank}"
        )
    return a, b


def lora_settings(adapter: Adapter) -> Lora:
    """The LoRA settings of an adapter that must have some.

    Raises:
        AdapterMismatch: there are none, so that its scaling is not known.
    """
    if adapter.lora is None:
        raise AdapterMismatch(
            "a space of LoRA products needs the LoRA scaling, and neither a received adapter nor this delta "
            "has LoRA settings: give Adapter(tensors, lora=Lora(rank=..., alpha=...)) instead of a plain dict"
        )
    return adapter.lora


def widest_lora(adapters: Sequence[Adapter]) -> Lora:
    """What adapters of their own are merged into: the settings of the largest rank, all target modules."""
    loras = [lora_settings(adapter) for adapter in adapters]
    widest = max(loras, key=lambda lora: (lora.rank, lora.scaling, lora.rslora))
    modules = tuple(sorted({module for lora in loras for module in lora.target_modules}))
    return Lora(widest.rank, widest.alpha, widest.rslora, modules)
