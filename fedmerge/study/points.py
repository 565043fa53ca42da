"""A bench as a scorer of single adapters on validation rows."""

from __future__ import annotations

import math
from collections.abc import Mapping
from typing import TYPE_CHECKING

from fedmerge.adapters import Adapter
from fedmerge.adapters.checks import check_together
from fedmerge.adapters.connectivity import Point
from fedmerge.errors import ConfigError

if TYPE_CHECKING:
    from fedmerge.study.bench import Bench

POINT = "point"
SPLIT = "validation"


def check_fits(adapters: Mapping[str, Adapter], initial: Adapter) -> None:
    """Refuse adapters that the silos of a simulation can't load, before any of them is asked.

    Args:
        adapters: by name, of any rank and dtype.
        initial: what the simulation's first round would broadcast.

    Raises:
        AdapterMismatch: other modules, another shape or another head.
    """
    wide = {
        name: Adapter({key: tensor.float() for key, tensor in adapter.tensors.items()}, adapter.lora)
        for name, adapter in adapters.items()
    }
    check_together(None, {"the simulation's adapter": initial, **wide}, mixed_ranks=True)


class PointScorer:
    """Scores adapters by the silos' validation rows, each silo counting alike.

    Args:
        bench: open.
    """

    def __init__(self, bench: Bench) -> None:
        self.bench = bench
        self.metric = bench.metric
        self.lora = bench.initial.lora

    def __call__(self, adapter: Adapter) -> Point:
        """Mean loss and mean score over the silos, and each silo's loss.

        Raises:
            AdapterMismatch: the adapter does not fit the bench's base.
            ConfigError: no silo has validation rows.
        """
        scores = self.bench.evaluate({POINT: adapter}, splits=(SPLIT,))
        key = f"{POINT}/{SPLIT}/loss"
        losses = {silo: float(found[key]) for silo, found in sorted(scores.metrics.items()) if key in found}
        summary = scores.summary(POINT, SPLIT)
        if summary is None or not losses:
            raise ConfigError("no silo has validation rows to measure losses on; set data.validation above 0")
        return Point(math.fsum(losses.values()) / len(losses), summary.mean, losses)
