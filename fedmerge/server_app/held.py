"""Scores on rows that the server itself holds, in this process."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass, replace
from typing import TYPE_CHECKING

from fedmerge.adapters import Adapter
from fedmerge.config import Config
from fedmerge.errors import ConfigError
from fedmerge.server_app.muster import Muster
from fedmerge.silo.order import Order
from fedmerge.silo.server_rows import SERVER, load_server

if TYPE_CHECKING:
    from fedmerge.silo.worker import Worker


@dataclass(frozen=True)
class Held:
    """Scores adapters on the server's rows; the base is loaded when the first is scored.

    Args:
        worker: with the rows.
        order: what it scores on.
    """

    worker: Worker
    order: Order

    def __call__(self, candidates: Mapping[str, Adapter]) -> dict[str, float]:
        """The figures, "<candidate>/validation/<name>" -> value."""
        found = self.worker.evaluate(candidates, self.order)
        return {key: value for key, value in found.items() if not isinstance(value, list)}


def held(config: Config, silos: Muster) -> Held | None:
    """What scores the shadows of each round; None where the server is not to.

    Raises:
        ConfigError: `data.server` can't be used, or silos keep a part of every adapter to themselves.
    """
    strategy = config.strategy
    if strategy.shadow_scoring != "server" or not strategy.shadows:
        return None
    if config.silo.lora.private:
        raise ConfigError(
            f"strategy.shadow-scoring = 'server': with lora.private = {config.silo.lora.private!r} the "
            "server has a part of each adapter alone, and nothing to score; score at the 'silos'"
        )
    from fedmerge.silo.worker import Worker  # noqa: PLC0415 (transformers, for a server that scores alone)

    rows = load_server(config.silo, silos.labels)
    # In a deployment train.device is a matter of the silos.
    device = config.silo.train.device if silos.roster.shared else "auto"
    settings = replace(config.silo, train=replace(config.silo.train, device=device))
    order = Order(SERVER, seed=config.run.seed, splits=("validation",), labels=silos.labels)
    return Held(Worker(settings, {SERVER: rows}), order)
