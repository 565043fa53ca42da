"""Deltas that are measured side by side: checked once, as products where their LoRA scaling is known."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass

import torch
from torch import Tensor

from fedmerge.adapters.adapter import Adapter, as_adapter
from fedmerge.adapters.checks import agreed_lora, check_together
from fedmerge.adapters.grams import gram_of_tensors, gram_of_updates
from fedmerge.adapters.pairs import Pair, split_names
from fedmerge.adapters.updates import Updates, updates_of
from fedmerge.errors import AdapterMismatch

CPU = torch.device("cpu")


@dataclass(frozen=True, eq=False)
class Compared:
    """Deltas that belong together.

    Args:
        received: what the clients started from; None where each delta is an adapter of its own.
        deltas: in the order given, all with LoRA settings where `pairs` has any.
        pairs: modules whose true updates are compared.
        others: tensors that are compared as they are.
    """

    received: Adapter | None
    deltas: tuple[Adapter, ...]
    pairs: tuple[Pair, ...]
    others: tuple[str, ...]

    @property
    def in_products(self) -> bool:
        """Whether LoRA pairs are compared as the true updates of their weights."""
        return bool(self.pairs)

    def updates(self, pair: Pair) -> Updates:
        """One module's updates, as products that are not formed."""
        return updates_of(pair, self.received, self.deltas, CPU)

    def tensors(self, name: str) -> list[Tensor]:
        """Each client's values of a tensor that is compared as it is."""
        return [delta.tensors[name].detach().cpu() for delta in self.deltas]

    def grams(self) -> dict[str, Tensor]:
        """By module or tensor, the clients' inner products, float64 `(clients, clients)`."""
        found = {pair.module: gram_of_updates(self.updates(pair)) for pair in self.pairs}
        return found | {name: gram_of_tensors(self.tensors(name)) for name in self.others}


def compared(
    deltas: Sequence[Adapter | Mapping[str, Tensor]],
    received: Adapter | Mapping[str, Tensor] | None = None,
    names: Sequence[str] = (),
) -> Compared:
    """Check that deltas belong together, and find out whether they can be compared as products.

    Args:
        deltas: as for `merge`.
        received: what the clients started from.
        names: what to call the deltas in a sentence; "delta 0" and so on where there are none.

    Raises:
        AdapterMismatch: deltas that do not belong together, or none.
    """
    clients = [as_adapter(delta) for delta in deltas]
    if not clients:
        raise AdapterMismatch("no delta was given to compare, expected at least one")
    start = None if received is None else as_adapter(received)
    called = names or [f"delta {position}" for position in range(len(clients))]
    labels = dict(zip(called, clients, strict=True))
    own_settings = start is None and all(delta.lora is not None for delta in clients)
    check_together(start, labels, mixed_ranks=own_settings)
    if not own_settings:
        everyone = [*labels.items(), *([] if start is None else [("the received adapter", start)])]
        lora = agreed_lora(everyone, "they can't be compared")
        start = start and Adapter(start.tensors, lora)
        clients = [Adapter(client.tensors, lora) for client in clients]
    pairs, others = split_names(clients[0].tensors)
    if clients[0].lora is None or not pairs:
        pairs, others = (), tuple(sorted(clients[0].tensors))
    return Compared(start, tuple(clients), pairs, others)
