"""Spaces: where the silos' deltas are compared. Text such as `product(rank=8)` names one."""

from __future__ import annotations

from collections.abc import Callable

from fedmerge.adapters.spaces.factors import Factors
from fedmerge.adapters.spaces.product import Product
from fedmerge.adapters.spaces.space import Energy, Placed, Space
from fedmerge.text import build, parse_call

__all__ = ["SPACES", "Energy", "Factors", "Placed", "Product", "Space", "parse_space"]

SPACES: dict[str, Callable[..., Space]] = {"factors": Factors, "product": Product}


def parse_space(text: str) -> Space:
    """The space that a text names; `str(space)` gives the text back.

    Raises:
        RuleError: an unknown name or knob, with the nearest one, or a knob out of range.

    Example:
        >>> parse_space("product(rank=8)")
        Product(rank=8)
        >>> parse_space("factor()")
        Traceback (most recent call last):
        fedmerge.errors.RuleError: unknown space 'factor': did you mean 'factors'? There are: factors, product
    """
    space: Space = build(parse_call(text, "space"), SPACES, "space")
    return space
