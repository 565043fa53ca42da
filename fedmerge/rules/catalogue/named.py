"""How a finished rule gets its spelling."""

from __future__ import annotations

from collections.abc import Mapping

from fedmerge.rules.combine import Scale
from fedmerge.rules.compose import Chain
from fedmerge.rules.stages import Stage
from fedmerge.text import render


def named(name: str, knobs: Mapping[str, object], stages: tuple[Stage, ...], scale: float = 1.0) -> Chain:
    """A chain under its rule's name.

    Args:
        name: the rule's name.
        knobs: its arguments, in their order.
        stages: without the scale.
        scale: lambda; 1 needs no stage.

    Returns:
        The rule; its text leaves out what equals its default, the first knob apart.
    """
    scaled = stages if scale == 1 else (*stages, Scale(scale))
    first = next(iter(knobs), None)
    unsaid = {"scale": 1.0, "scope": None, "like": None, "votes": "mass", "negate": ""}
    return Chain(scaled, render(name, knobs, {key: value for key, value in unsaid.items() if key != first}))
