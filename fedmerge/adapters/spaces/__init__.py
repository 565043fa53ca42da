"""Spaces: where the silos' deltas are compared. Text such as `product(rank=8)` names one."""

from __future__ import annotations

from collections.abc import Callable

from fedmerge.adapters.spaces.core import Core
from fedmerge.adapters.spaces.factors import Factors
from fedmerge.adapters.spaces.product import Product
from fedmerge.adapters.spaces.residual import Residual
from fedmerge.adapters.spaces.space import Energy, Placed, Space
from fedmerge.adapters.spaces.stacked import Stacked
from fedmerge.text import build, parse_call

__all__ = [
    "SPACES",
    "Core",
    "Energy",
    "Factors",
    "Placed",
    "Product",
    "Residual",
    "Space",
    "Stacked",
    "parse_space",
]

SPACES: dict[str, Callable[..., Space]] = {
    "factors": Factors,
    "product": Product,
    "core": Core,
    "stacked": Stacked,
    "residual": Residual,
}


def parse_space(text: str) -> Space:
    """The space that a text names; `str(space)` gives the text back.

    Raises:
        RuleError: an unknown name or knob, with the nearest one, or a knob out of range.

    Example:
        >>> parse_space("product(rank=8)")
        Product(rank=8)
        >>> parse_space("product(rang=8)")
        Traceback (most recent call last):
        fedmerge.errors.RuleError: product() has no knob 'rang'. Did you mean 'rank'? There are: rank
    """
    space: Space = build(parse_call(text, "space"), SPACES, "space")
    return space
