"""Names down the side, values along: candidates, and differences with their intervals."""

from __future__ import annotations

import math
from collections.abc import Sequence
from dataclasses import dataclass

from matplotlib.axes import Axes
from matplotlib.lines import Line2D

from fedmerge.study.report.document import Figure
from fedmerge.study.report.plots.canvas import Canvas, Words, colour, drawn

_ROW, _FOOT = 26, 62
MARKERS = {"merged": "o", "alone": "s", "base": "o", "pooled": "D", "other": "o", "gain": "o", "loss": "s"}


@dataclass(frozen=True)
class Dot:
    """A row: a value, and how far it reaches to both sides.

    Args:
        name: of the row.
        value: where the dot is.
        low, high: the ends of the line through it; None for none.
        kind: a colour of the palette.
        hollow: a dot that is not filled.
    """

    name: str
    value: float
    low: float | None = None
    high: float | None = None
    kind: str = "other"
    hollow: bool = False


@dataclass(frozen=True)
class Axis:
    """The axis of values: its label, and a value that a line marks; None for none."""

    label: str
    mark: float | None = None


def dot_plot(dots: Sequence[Dot], axis: Axis, words: Words) -> Figure:
    """Draw rows of dots, in the order given."""

    def paint(canvas: Canvas) -> None:
        axes = canvas.sheet.add_subplot()
        canvas.plain(axes)
        canvas.rows(axes, [dot.name for dot in dots])
        if axis.mark is not None:
            axes.axvline(axis.mark, color=colour("soft"), linewidth=1.2)
        for row, dot in enumerate(dots):
            _dot(axes, row, dot)
        axes.set_xlabel(axis.label)
        axes.locator_params(axis="x", nbins=4 if canvas.narrow else 7)
        axes.margins(x=0.06)

    return drawn(paint, _ROW * len(dots) + _FOOT, words)


def _dot(axes: Axes, row: int, dot: Dot) -> None:
    shade = colour(dot.kind)
    ends = [dot.value if end is None else end for end in (dot.low, dot.high)]
    if ends != [dot.value, dot.value]:
        axes.plot(ends, [row, row], color=shade, linewidth=2, alpha=0.55, solid_capstyle="round")
        for end in ends:
            if end != dot.value:
                axes.plot([end], [row], marker="|", color=shade, markersize=8, markeredgewidth=1.6)
    face = colour("paper") if dot.hollow else shade
    axes.plot(
        [dot.value], [row], marker=MARKERS[dot.kind], color=shade, markerfacecolor=face,
        markersize=7.5, markeredgewidth=1.8, linestyle="none",
    )  # fmt: skip


def legend(axes: Axes, entries: Sequence[tuple[str, str, bool]], columns: int) -> None:
    """A legend above: (name, kind, hollow)."""
    handles = [
        Line2D(
            [], [], marker=MARKERS[kind], color=colour(kind), linestyle="none", label=name,
            markerfacecolor=colour("paper") if hollow else colour(kind), markeredgewidth=1.6,
        )
        for name, kind, hollow in entries
    ]  # fmt: skip
    axes.legend(
        handles=handles, loc="lower left", bbox_to_anchor=(0, 1), ncols=columns, borderpad=0.2,
        handletextpad=0.2, columnspacing=1.2, labelcolor=colour("ink"),
    )  # fmt: skip


def known(value: float | None) -> bool:
    """Whether there is a number to draw."""
    return value is not None and math.isfinite(value)
