"""Scores round by round, each with its band."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass

from matplotlib.ticker import MaxNLocator

from fedmerge.study.report.document import Figure
from fedmerge.study.report.plots.canvas import Canvas, Words, colour, drawn

_STYLES = ("-", "--", "-.", ":")
_MARKERS = ("o", "s", "D", "^", "v", "P")
_MOST_LEGEND = 8


@dataclass(frozen=True)
class Series:
    """One line.

    Args:
        name: in the legend.
        rounds: how many rounds were merged, ascending.
        middle, low, high: the line and its band, one each.
    """

    name: str
    rounds: tuple[int, ...]
    middle: tuple[float, ...]
    low: tuple[float, ...]
    high: tuple[float, ...]


@dataclass(frozen=True)
class Counterfactual:
    """What another merge of a round's replies would have scored: (round, score) each."""

    name: str
    points: tuple[tuple[int, float], ...]


def round_plot(
    series: Sequence[Series], others: Sequence[Counterfactual], metric: str, words: Words
) -> Figure:
    """Draw the lines, their bands, and the counterfactuals as open marks."""

    def paint(canvas: Canvas) -> None:
        axes = canvas.sheet.add_subplot()
        canvas.plain(axes, "y")
        for place, line in enumerate(series):
            shade = colour("merged") if len(series) == 1 else colour(f"series-{place % 6 + 1}")
            axes.fill_between(line.rounds, line.low, line.high, color=shade, alpha=0.14, linewidth=0)
            axes.plot(
                line.rounds, line.middle, color=shade, linewidth=2.2, linestyle=_STYLES[place // 6 % 4],
                marker="o", markersize=5.5, label=canvas.name(line.name),
            )  # fmt: skip
        for place, other in enumerate(others):
            axes.plot(
                *zip(*other.points, strict=True), linestyle="none", marker=_MARKERS[place % 6],
                color=colour(f"series-{(place + 1) % 6 + 1}"), markerfacecolor=colour("paper"),
                markersize=6, markeredgewidth=1.5, label=canvas.name(other.name),
            )  # fmt: skip
        axes.set_xlabel("rounds merged")
        axes.set_ylabel(metric)
        axes.xaxis.set_major_locator(MaxNLocator(integer=True, nbins=6 if canvas.narrow else 12))
        _legend(canvas, len(series) + len(others))

    lines = len(series) + len(others)
    below = 22 * min(lines, _MOST_LEGEND) if lines > 1 else 0
    return drawn(paint, 300 + below // 2, words, 270 + below)


def _legend(canvas: Canvas, lines: int) -> None:
    if lines < 2:
        return
    axes = canvas.sheet.axes[0]
    handles, names = axes.get_legend_handles_labels()
    canvas.sheet.legend(
        handles[:_MOST_LEGEND], names[:_MOST_LEGEND], loc="outside lower left",
        ncols=1 if canvas.narrow else 2, labelcolor=colour("ink"),
    )  # fmt: skip
