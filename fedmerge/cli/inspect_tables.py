"""An inspection on a terminal: tables, lines as curves, the plane as a map, sentences last."""

from __future__ import annotations

import math
from collections.abc import Iterable, Sequence
from typing import TYPE_CHECKING

from fedmerge.adapters.figures import share
from fedmerge.adapters.findings_lines import gain
from fedmerge.cli.merging import percent

if TYPE_CHECKING:
    from rich.console import RenderableType
    from rich.table import Table

    from fedmerge.adapters.connectivity import Line
    from fedmerge.adapters.plane import Plane
    from fedmerge.study.inspection import Inspection

SIGNS = (
    "signs: coordinates that two or more move, those of them in conflict, what coins would give, and the "
    "share of magnitude that an election by mass drops"
)
BARS = "▁▂▃▄▅▆▇█"
MOST_NAMES = 12
"""A wider matrix of cosines stands in the file alone."""

MOST_LAYERS = 12


def report(found: Inspection, title: str) -> list[RenderableType]:
    """Everything that a person is shown.

    Args:
        found: the inspection.
        title: what was inspected, in a line.
    """
    from rich.text import Text

    parts: list[RenderableType] = [title, "", table(silo_rows(found))]
    names = found.figures.names
    if 1 < len(names) <= MOST_NAMES:
        parts += ["", "cosines of the updates", table(cosine_rows(found), gap=1)]
    parts += ["", layers_title(found), table(layer_rows(found))]
    if found.figures.before and found.figures.after:
        parts += ["", SIGNS, table(sign_rows(found))]
    if found.lines:
        parts += [
            "",
            f"lines (loss on validation rows; the merge is {found.how})",
            table(line_rows(found.lines)),
        ]
    if found.plane:
        parts += ["", *plane_lines(found.plane)]
    return [*parts, "", *(Text(f"- {sentence}") for sentence in found.sentences)]


def table(rows: Sequence[Sequence[str]], gap: int = 2) -> Table:
    """Rows as a table, the first one above the columns; names are cut off last.

    Args:
        rows: of cells.
        gap: spaces between columns.
    """
    from rich.table import Table

    shown = Table(box=None, padding=(0, gap, 0, 0), show_edge=False)
    for place, name in enumerate(rows[0]):
        shown.add_column(name, justify="right" if place else "left", no_wrap=True)
    for row in rows[1:]:
        shown.add_row(*row)
    return shown


def silo_rows(found: Inspection) -> list[list[str]]:
    """A row for each silo: how far, how alike, how influential, and what it gains."""
    figures, shape = found.figures, found.figures.geometry
    gains = {line.names[1]: gain(line) for line in figures.from_start}
    rows = [["", "length", "of weights", "influence", "mean cosine", "loss falls by"]]
    for place, name in enumerate(figures.names):
        others = [value for other, value in enumerate(shape.cosines[place]) if other != place]
        rows.append(
            [
                name,
                f"{shape.norms[place]:.3g}",
                percent(figures.relative[place]) if figures.relative else "-",
                percent(shape.influence[place]),
                f"{sum(others) / len(others):+.3f}" if others else "-",
                _signed(gains[name]) if name in gains else "-",
            ]
        )
    return _without_empty(rows)


def cosine_rows(found: Inspection) -> list[list[str]]:
    """The matrix of cosines; columns by number, so that a dozen silos fit a terminal."""
    names = [f"{place} {name}" for place, name in enumerate(found.figures.names, 1)]
    rows = [["", *(str(place) for place in range(1, len(names) + 1))]]
    for name, row in zip(names, found.figures.geometry.cosines, strict=True):
        rows.append(
            [name, *("1" if other == name else _short(v) for other, v in zip(names, row, strict=True))]
        )
    return rows


def layers_title(found: Inspection) -> str:
    """Says what the table of layers shows, and what it leaves out."""
    layers = found.figures.geometry.layers
    what = "modules" if found.figures.geometry.in_products else "tensors"
    shown = f", the {MOST_LAYERS} of longest updates" if len(layers) > MOST_LAYERS else ""
    over = len(found.figures.names)
    averaged = f"means over {over}; " if over > 1 else ""
    return f"{len(layers)} {what}{shown} ({averaged}effective rank, share of energy in the first direction)"


def layer_rows(found: Inspection) -> list[list[str]]:
    """A row for each module: means over the silos."""
    layers = found.figures.geometry.layers
    rows = [["", "length", "of weight", "rank", "in the first"]]
    for name in sorted(layers, key=lambda name: -_mean(layers[name]))[:MOST_LAYERS]:
        relative, spectra = found.relative.get(name), found.figures.spectra.get(name)
        rows.append(
            [
                name.removeprefix("base_model.model."),
                f"{_mean(layers[name]):.3g}",
                percent(_mean(relative)) if relative else "-",
                f"{_mean(spectrum.effective_rank for spectrum in spectra):.1f}" if spectra else "-",
                percent(_mean(spectrum.energy(1) for spectrum in spectra)) if spectra else "-",
            ]
        )
    return _without_empty(rows)


def sign_rows(found: Inspection) -> list[list[str]]:
    """Before and after the trim."""
    rows = [["", "shared", "in conflict", "by coins", "dropped"]]
    for conflict in (found.figures.before, found.figures.after):
        if conflict:
            kept = "as sent" if conflict.density == 1 else f"trimmed to {share(conflict.density)}"
            shares = (conflict.shared, conflict.against, conflict.chance, conflict.minority)
            rows.append([kept, *map(percent, shares)])
    return rows


def line_rows(lines: Sequence[Line]) -> list[list[str]]:
    """A row for each line: its ends, the highest rise between them, where it is lowest, and its curve."""
    rows = [["from", "to", "loss", "at t = 1", "barrier", "lowest at", "curve"]]
    for line in lines:
        best = f"t = {line.best:g}: {line[line.best].loss:.3f}"
        ends = [f"{line[0].loss:.3f}", f"{line[1].loss:.3f}", f"{line.barrier:.3f}"]
        rows.append([*line.names, *ends, best, curve(line.losses)])
    return rows


def curve(values: Sequence[float]) -> str:
    """Values as bars, the lowest one lowest.

    Example:
        >>> curve([1.0, 1.5, 2.0, float("nan")])
        '▁▅█?'
    """
    finite = [value for value in values if math.isfinite(value)]
    low, high = min(finite, default=0.0), max(finite, default=0.0)
    step = (high - low) / (len(BARS) - 1) or 1.0
    return "".join(BARS[round((v - low) / step)] if math.isfinite(v) else "?" for v in values)


def plane_lines(plane: Plane) -> list[str]:
    """The plane as a map: the loss in tenths of its range, letters where something lies.

    Example:
        >>> from fedmerge.adapters.plane import Plane
        >>> points = {"base": (0.0, 0.0), "one": (1.0, 0.0), "two": (0.0, 1.0)}
        >>> corners, losses = ("base", "one", "two"), ((1.0, 2.0), (3.0, 5.5))
        >>> for line in plane_lines(Plane(corners, (0.0, 1.0), (0.0, 1.0), losses, points, {})):
        ...     print(line)
        the plane through base, one and two: from 0, a loss of 1.000, to 9, one of 5.500
            4c   9
            0a   2b
        a base, b one, c two
    """
    losses = [loss for row in plane.losses for loss in row if math.isfinite(loss)]
    low, high = min(losses, default=0.0), max(losses, default=0.0)
    letters = dict(zip("abcdefghijklmnopqrstuvwxyz", plane.points, strict=False))
    lines = [
        f"the plane through {plane.corners[0]}, {plane.corners[1]} and {plane.corners[2]}: "
        f"from 0, a loss of {low:.3f}, to 9, one of {high:.3f}"
    ]
    for row in reversed(range(len(plane.y))):
        cells = []
        for column in range(len(plane.x)):
            here = [letter for letter, name in letters.items() if _cell(plane, name) == (row, column)]
            cells.append((_tenth(plane.losses[row][column], low, high) + "".join(here)).ljust(4))
        lines.append(f"    {' '.join(cells)}".rstrip())
    return [*lines, ", ".join(f"{letter} {name}" for letter, name in letters.items())]


def _tenth(loss: float, low: float, high: float) -> str:
    if not math.isfinite(loss):
        return "?"
    return str(min(int(10 * (loss - low) / (high - low)), 9)) if high > low else "0"


def _cell(plane: Plane, name: str) -> tuple[int, int]:
    """Row and column that a point is nearest to."""
    x, y = plane.points[name]
    column = min(range(len(plane.x)), key=lambda place: abs(plane.x[place] - x))
    return min(range(len(plane.y)), key=lambda place: abs(plane.y[place] - y)), column


def _short(cosine: float) -> str:
    """A cosine in four characters.

    Example:
        >>> _short(0.034), _short(-0.5), _short(1.0)
        ('+.03', '-.50', '+1.00')
    """
    return f"{cosine:+.2f}".replace("0.", ".", 1)


def _signed(value: float) -> str:
    return f"{100 * value:+.1f} %"


def _mean(values: Iterable[float]) -> float:
    every = list(values)
    return sum(every) / len(every)


def _without_empty(rows: list[list[str]]) -> list[list[str]]:
    """Without columns in which nothing stands but dashes."""
    kept = [place for place in range(len(rows[0])) if any(row[place] != "-" for row in rows[1:])]
    return [[row[place] for place in kept] for row in rows]
