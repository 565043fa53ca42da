"""The loss between adapters: along lines, and over a plane through three of them."""

from __future__ import annotations

from collections.abc import Sequence

import numpy as np
from matplotlib.colors import to_rgba

from fedmerge.study.report.document import Figure
from fedmerge.study.report.plots.canvas import Canvas, Words, colour, drawn
from fedmerge.study.report.study_sources import Line, Plane

_MOST_NAMED = 6
_LEVELS = 12


def line_plot(lines: Sequence[Line], words: Words) -> Figure:
    """The loss along each line; of many, those of the highest barriers in colour."""
    order = sorted(range(len(lines)), key=lambda place: -(lines[place].barrier or 0.0))
    named = set(order[:_MOST_NAMED])

    def paint(canvas: Canvas) -> None:
        axes = canvas.sheet.add_subplot()
        canvas.plain(axes, "y")
        for place, line in enumerate(lines):
            points = [
                (at, loss) for at, loss in zip(line.at, line.loss, strict=True) if None not in (at, loss)
            ]
            if not points:
                continue
            at, loss = zip(*points, strict=True)
            if place in named:
                shade, name = colour(f"series-{order.index(place) + 1}"), f"{line.start} to {line.end}"
                axes.plot(
                    at, loss, color=shade, linewidth=2, marker="o", markersize=4, label=canvas.name(name)
                )
            else:
                axes.plot(at, loss, color=colour("base"), linewidth=1, alpha=0.5, zorder=1)
        axes.set_xlabel("share of the way")
        axes.set_ylabel("loss")
        columns = 1 if canvas.narrow else 2
        canvas.sheet.legend(loc="outside lower left", ncols=columns, labelcolor=colour("ink"))

    below = 22 * min(len(lines), _MOST_NAMED)
    return drawn(paint, 280 + below // 2, words, 260 + below)


def plane_plot(plane: Plane, words: Words) -> Figure:
    """The loss as shades, the paler the lower, with the adapters as points."""
    loss = np.array(plane.loss, dtype=float)

    def paint(canvas: Canvas) -> None:
        axes = canvas.sheet.add_subplot()
        low, high = np.nanmin(loss), np.nanmax(loss)
        edges = np.linspace(low, high, _LEVELS + 1) if high > low else np.array([low - 1, low + 1])
        shades = [to_rgba(colour("merged"), 0.62 * step / _LEVELS) for step in range(1, len(edges))]
        x, y = (np.array(values, dtype=float) for values in (plane.x, plane.y))
        axes.contourf(x, y, loss, levels=edges, colors=shades)
        for name, (across, up, *_) in plane.points.items():
            if across is None or up is None:
                continue
            axes.plot([across], [up], marker="o", color=colour("ink"), markersize=6)
            axes.annotate(
                canvas.name(name), (across, up), xytext=(0, 8), textcoords="offset points", ha="center"
            )
        axes.set_aspect("equal")
        axes.set_xticks([])
        axes.set_yticks([])
        axes.spines["bottom"].set_visible(False)

    return drawn(paint, 420, words, 340)
