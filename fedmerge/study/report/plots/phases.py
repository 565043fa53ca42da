"""Where the time went: one bar, a piece a phase."""

from __future__ import annotations

from collections.abc import Mapping

from fedmerge.study.report.document import Figure
from fedmerge.study.report.plots.canvas import Canvas, Words, colour, drawn


def phase_plot(seconds: Mapping[str, float], words: Words) -> Figure:
    """Draw a bar a phase, in the order given."""

    def paint(canvas: Canvas) -> None:
        axes = canvas.sheet.add_subplot()
        canvas.rows(axes, list(seconds))
        axes.barh(range(len(seconds)), list(seconds.values()), height=0.56, color=colour("merged"))
        for row, value in enumerate(seconds.values()):
            axes.annotate(
                f"{value:.1f} s", (value, row), xytext=(5, 0), textcoords="offset points",
                va="center", color=colour("ink"), fontsize=10.5,
            )  # fmt: skip
        axes.set_xticks([])
        axes.spines["bottom"].set_visible(False)
        axes.set_xlim(0, (max(seconds.values()) or 1.0) * (1.25 if canvas.narrow else 1.12))

    return drawn(paint, 26 * len(seconds) + 26, words)
