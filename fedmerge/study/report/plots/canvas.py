"""A surface to draw on: matplotlib without its looks, twice, for a page's width and for a phone's.

Colours are names ("merged", "ink") that become CSS variables in the SVG, so that one picture serves light and
dark. Texts stay texts, set in the page's font; matplotlib measures them in DejaVu Sans, which is wider than
most, so that nothing is cut off.
"""

from __future__ import annotations

import io
import warnings
from collections.abc import Callable
from dataclasses import dataclass
from typing import Any

import matplotlib as mpl
from matplotlib.axes import Axes
from matplotlib.figure import Figure as Sheet

from fedmerge.study.report.document import NARROW, WIDE, Figure
from fedmerge.study.report.plots.svg import PALETTE, cleaned

_POINTS_PER_INCH = 72
_STYLE: Any = {  # matplotlib types its settings one by one, and by version
    "svg.hashsalt": "fedmerge",
    "svg.fonttype": "none",
    "font.family": "DejaVu Sans",
    "text.parse_math": False,  # a silo's name may have dollars
    "axes.unicode_minus": False,
    "axes.spines.top": False,
    "axes.spines.right": False,
    "axes.spines.left": False,
    "axes.axisbelow": True,
    "xtick.major.size": 0,
    "ytick.major.size": 0,
    "legend.frameon": False,
    "path.simplify": False,
}
_MOST_CHARACTERS = {WIDE: 40, NARROW: 19}


def colour(name: str) -> str:
    """The colour that stands for a CSS variable until the SVG is written.

    Example:
        >>> colour("paper") != colour("ink")
        True
    """
    return f"#0000{PALETTE.index(name) + 1:02x}"


@dataclass(frozen=True)
class Canvas:
    """Where one picture is drawn.

    Args:
        sheet: matplotlib's figure.
        width: in pixels.
    """

    sheet: Sheet
    width: int

    @property
    def narrow(self) -> bool:
        """Whether it is for a phone."""
        return self.width == NARROW

    def name(self, text: str) -> str:
        """A name as there is room for it."""
        most = _MOST_CHARACTERS[self.width]
        text = " ".join(text.split())
        return text if len(text) <= most else text[: most - 1] + "…"

    def plain(self, axes: Axes, grid: str = "x") -> None:
        """Rules in the direction of the values, and nothing else."""
        axes.grid(axis=grid, color=colour("line"), linewidth=1)  # type: ignore[arg-type]
        axes.spines["bottom"].set_color(colour("line"))
        axes.spines["bottom"].set_visible(grid == "y")

    def rows(self, axes: Axes, names: list[str]) -> None:
        """Rows with names, from top to bottom."""
        axes.set_yticks(range(len(names)), [self.name(name) for name in names])
        axes.set_ylim(len(names) - 0.4, -0.6)
        axes.tick_params(axis="y", labelcolor=colour("ink"), pad=6)


@dataclass(frozen=True)
class Words:
    """What goes with a picture: what it shows, for who can't see it, and how to read it."""

    alternative: str
    caption: str


def drawn(paint: Callable[[Canvas], None], height: int, words: Words, narrow_height: int = 0) -> Figure:
    """A picture for both widths.

    Args:
        paint: draws on a canvas.
        height: in pixels, at a page's width.
        words: that go with it.
        narrow_height: likewise at a phone's; 0 = `height`.

    Returns:
        The picture; the same data give the same bytes.
    """

    def draw(width: int) -> str:
        return _svg(paint, width, (narrow_height or height) if width == NARROW else height)

    return Figure(draw, words.alternative, words.caption)


def _svg(paint: Callable[[Canvas], None], width: int, height: int) -> str:
    size = 12 if width == WIDE else 11
    colours = {
        "text.color": colour("ink"),
        "axes.edgecolor": colour("line"),
        "axes.labelcolor": colour("soft"),
        "xtick.labelcolor": colour("soft"),
        "ytick.labelcolor": colour("soft"),
        "font.size": size,
    }
    blank = {"Date": None, "Creator": None, "Format": None, "Type": None}
    with mpl.rc_context(_STYLE | colours), warnings.catch_warnings():
        warnings.simplefilter("ignore")  # glyphs that DejaVu lacks: the page's font is not DejaVu
        sheet = Sheet(figsize=(width / _POINTS_PER_INCH, height / _POINTS_PER_INCH), layout="constrained")
        paint(Canvas(sheet, width))
        file = io.StringIO()
        sheet.savefig(file, format="svg", transparent=True, metadata=blank)
    return cleaned(file.getvalue())
