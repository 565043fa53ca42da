"""Every silo's score by each candidate, and what merging gained or cost it."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass

from matplotlib.axes import Axes

from fedmerge.study.report.document import Figure
from fedmerge.study.report.plots.canvas import Canvas, Words, colour, drawn
from fedmerge.study.report.plots.dots import MARKERS, legend

_ROW, _FOOT = 28, 84
_MOST_NAMED = 40
_KINDS = ("base", "alone", "merged", "pooled")
_HOLLOW = ("base",)


@dataclass(frozen=True)
class SiloScores:
    """One silo.

    Args:
        name: of the silo.
        scores: by "base", "alone", "merged", "pooled", what there is.
        gain: of merging over training alone, positive where merging is better; None where that is unknown.
    """

    name: str
    scores: dict[str, float]
    gain: float | None


def silo_plot(silos: Sequence[SiloScores], metric: str, against: str, words: Words) -> Figure:
    """Scores on the left, gains on the right; of very many silos the gains alone.

    Args:
        silos: in the order shown.
        metric: of the scores, in words.
        against: whom the gains are over, "alone".
        words: that go with it.
    """
    gains = any(silo.gain is not None for silo in silos)
    if len(silos) > _MOST_NAMED and gains:
        return drawn(lambda canvas: _profile(canvas, silos, against), 260, words)

    def paint(canvas: Canvas) -> None:
        shares = [1.0] if not gains else [1.5, 1] if canvas.narrow else [1.7, 1]
        grid = canvas.sheet.add_gridspec(1, len(shares), width_ratios=shares)
        left = canvas.sheet.add_subplot(grid[0, 0])
        _scores(canvas, left, silos)
        left.set_xlabel(metric)
        if gains:
            right = canvas.sheet.add_subplot(grid[0, 1])
            _gains(canvas, right, silos)
            right.set_xlabel(f"gain over {against}")

    return drawn(paint, _ROW * len(silos) + _FOOT, words, _ROW * len(silos) + _FOOT + 16)


def _scores(canvas: Canvas, axes: Axes, silos: Sequence[SiloScores]) -> None:
    canvas.plain(axes)
    canvas.rows(axes, [silo.name for silo in silos])
    kinds = [kind for kind in _KINDS if any(kind in silo.scores for silo in silos)]
    for row, silo in enumerate(silos):
        spread = list(silo.scores.values())
        if spread:
            axes.plot([min(spread), max(spread)], [row, row], color=colour("line"), linewidth=2.5)
        for kind in kinds:
            if kind in silo.scores:
                hollow = kind in _HOLLOW
                axes.plot(
                    [silo.scores[kind]], [row], marker=MARKERS[kind], color=colour(kind), linestyle="none",
                    markersize=7.5 if kind == "merged" else 6.5, markeredgewidth=1.6,
                    markerfacecolor=colour("paper") if hollow else colour(kind),
                )  # fmt: skip
    axes.locator_params(axis="x", nbins=3 if canvas.narrow else 6)
    axes.margins(x=0.06)
    legend(axes, [(kind, kind, kind in _HOLLOW) for kind in kinds], 2 if canvas.narrow else 4)


def _gains(canvas: Canvas, axes: Axes, silos: Sequence[SiloScores]) -> None:
    canvas.plain(axes)
    canvas.rows(axes, [""] * len(silos))
    gains = [silo.gain or 0.0 for silo in silos]
    axes.barh(range(len(silos)), gains, height=0.56, color=[_shade(gain) for gain in gains])
    axes.axvline(0, color=colour("soft"), linewidth=1.2)
    reach = max(map(abs, gains)) or 1.0
    for row, silo in enumerate(silos):
        if silo.gain is not None:
            side = 1 if silo.gain >= 0 else -1
            axes.text(
                silo.gain + side * 0.06 * reach, row, f"{silo.gain:+.3f}", va="center",
                ha="left" if side > 0 else "right", color=colour("ink"), fontsize=10,
            )  # fmt: skip
    low, high = min(0.0, *gains), max(0.0, *gains)
    room = 0.95 if canvas.narrow else 0.5  # for the figures beside the bars
    axes.set_xlim(
        low - (room * reach if low < 0 else 0.1 * reach), high + (room * reach if high > 0 else 0.1 * reach)
    )
    axes.set_xticks([])


def _profile(canvas: Canvas, silos: Sequence[SiloScores], against: str) -> None:
    axes = canvas.sheet.add_subplot()
    canvas.plain(axes, "y")
    gains = [silo.gain or 0.0 for silo in silos]
    axes.bar(range(len(silos)), gains, width=0.86, color=[_shade(gain) for gain in gains])
    axes.axhline(0, color=colour("soft"), linewidth=1.2)
    axes.set_xticks([])
    axes.set_xlabel(f"{len(silos)} silos, sorted")
    axes.set_ylabel(f"gain over {against}")


def _shade(gain: float) -> str:
    return colour("gain" if gain >= 0 else "loss")
