"""Values as shades: how alike updates are, and where they are long."""

from __future__ import annotations

from collections.abc import Sequence

import numpy as np
from matplotlib.axes import Axes
from matplotlib.patches import Rectangle
from numpy.typing import NDArray

from fedmerge.study.report.document import Figure
from fedmerge.study.report.plots.canvas import Canvas, Words, colour, drawn

Rows = Sequence[Sequence[float | None]]
_MOST_SHAPES = 1000  # above it one image, so that a page stays small
_POSITIVE, _NEGATIVE = (44, 130, 210), (220, 105, 35)
_STEPS = 16
_MOST_LABELS, _MOST_WRITTEN = 40, 10
_DARKEST = 0.62  # so that figures on top of a shade can be read


def cosine_map(names: Sequence[str], cosines: Rows, words: Words) -> Figure:
    """Cosines from -1 to 1: two colours, the paler the nearer to 0."""

    def paint(canvas: Canvas) -> None:
        axes = canvas.sheet.add_subplot()
        axes.set_aspect("equal")
        _cells(axes, cosines, 1.0)
        _labels(canvas, axes, names, list(names))
        if len(names) <= (6 if canvas.narrow else _MOST_WRITTEN):
            _figures(axes, cosines)

    side = min(520, 190 + 34 * len(names))
    return drawn(paint, side, words, min(360, side))


def layer_map(modules: Sequence[str], names: Sequence[str], values: Rows, words: Words) -> Figure:
    """Values of 0 and more, a row a module, a column a silo: the darkest is the largest.

    Args:
        modules: names of the rows.
        names: of the columns.
        values: (modules, silos).
        words: that go with it.
    """

    def paint(canvas: Canvas) -> None:
        axes = canvas.sheet.add_subplot()
        largest = max((value for row in values for value in row if value is not None), default=0.0)
        _cells(axes, values, largest or 1.0)
        _labels(canvas, axes, names, list(modules))
        axes.set_aspect("auto")

    height = int(min(760, 110 + max(3.5, min(22, 600 / len(modules))) * len(modules)))
    return drawn(paint, height, words)


def _cells(axes: Axes, values: Rows, most: float) -> None:
    """Draw every cell: as shapes in the page's colours, or as one image where there are very many."""
    strengths = np.array([[np.nan if value is None else value / most for value in row] for row in values])
    if strengths.size > _MOST_SHAPES:
        axes.imshow(_image(strengths), interpolation="none", aspect="auto")
        return
    for (row, column), strength in np.ndenumerate(strengths):
        if np.isfinite(strength):
            shade = colour("gain" if strength >= 0 else "loss")
            alpha = _DARKEST * min(1.0, abs(float(strength)))
            axes.add_patch(
                Rectangle((column - 0.47, row - 0.45), 0.94, 0.9, facecolor=shade, alpha=alpha, linewidth=0)
            )
    axes.set_xlim(-0.5, strengths.shape[1] - 0.5)
    axes.set_ylim(strengths.shape[0] - 0.5, -0.5)


def _image(strengths: NDArray[np.float64]) -> NDArray[np.uint8]:
    """Pixels `(rows, columns, 4)`: colours that stand out on light and dark, the paler the nearer to 0."""
    known = np.nan_to_num(strengths)
    pixels = np.where((known >= 0)[..., None], _POSITIVE, _NEGATIVE)
    alpha = np.round(np.clip(np.abs(known), 0, 1) * _STEPS) / _STEPS * _DARKEST * 255
    return np.concatenate([pixels, alpha[..., None]], axis=-1).astype(np.uint8)


def _labels(canvas: Canvas, axes: Axes, columns: Sequence[str], rows: Sequence[str]) -> None:
    for side in axes.spines.values():
        side.set_visible(False)
    every = -(-len(columns) // (12 if canvas.narrow else _MOST_LABELS // 2))
    places = list(range(0, len(columns), every))
    short = len(columns) <= (4 if canvas.narrow else 8) and max(map(len, columns)) <= 10
    axes.set_xticks(
        places,
        [canvas.name(columns[place])[:14] for place in places],
        rotation=0 if short else 90,
        color=colour("ink"),
    )
    every = -(-len(rows) // _MOST_LABELS)
    places = list(range(0, len(rows), every))
    size = 11 if len(places) <= 20 else 8
    axes.set_yticks(
        places, [canvas.name(_tail(rows[place])) for place in places], color=colour("ink"), fontsize=size
    )


def _tail(module: str) -> str:
    """The end of a module's path, which tells it apart: "3.self_attn.q_proj"."""
    return ".".join(module.split(".")[-3:])


def _figures(axes: Axes, values: Rows) -> None:
    for (row, column), value in np.ndenumerate(np.array(values, dtype=object)):
        if value is not None:
            axes.text(column, row, f"{value:.2f}", ha="center", va="center", fontsize=11, color=colour("ink"))
