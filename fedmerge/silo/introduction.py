"""What a silo tells of its rows before it trains: how many there are, and the labels, to be agreed on."""

from __future__ import annotations

from typing import Any

from fedmerge.silo.columns import labels_of
from fedmerge.silo.data import SiloData


def card(silo: SiloData, label: str) -> dict[str, Any]:
    """Name, number of rows of each split, and the labels.

    Args:
        silo: its rows.
        label: the column of the label; "" without one.
    """
    rows = [*silo.train, *silo.validation, *silo.test]
    return {
        "name": silo.name,
        "examples": len(silo.train),
        "validation": len(silo.validation),
        "test": len(silo.test),
        "labels": labels_of(rows, label) if label else None,
    }
