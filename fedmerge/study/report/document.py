"""What a report says, whatever it is written as: sections of sentences, tables and figures."""

from __future__ import annotations

import math
from collections.abc import Callable, Sequence
from dataclasses import dataclass, field

Cell = str | float | int | None
WIDE, NARROW = 720, 360
"""Widths of a picture: for a page, and for a phone."""


@dataclass(frozen=True)
class Column:
    """A column of a table.

    Args:
        title: its header, with the unit of its numbers.
        digits: of its numbers behind the point; None for a column of texts.
        signed: whether a plus sign is written.
    """

    title: str
    digits: int | None = None
    signed: bool = False

    def shown(self, cell: Cell) -> str:
        """A cell as it is written; "" where there is nothing.

        Example:
            >>> Column("gain", 3, signed=True).shown(0.0125), Column("gain", 3).shown(None)
            ('+0.013', '')
        """
        if cell is None or isinstance(cell, str):
            return cell or ""
        if not math.isfinite(cell):
            return ""
        if self.digits is None:
            return str(cell)
        text = f"{cell:{'+' if self.signed else ''}.{self.digits}f}"
        # What rounds to nothing has no sign.
        return text.lstrip("+-") if float(text) == 0 else text


@dataclass(frozen=True)
class Table:
    """A table; the first column names the rows.

    Args:
        caption: what it shows.
        columns: its columns.
        rows: a cell a column each.
        strong: rows that are emphasised.
        best: cells, (row, column), that are the best of their column.
    """

    caption: str
    columns: tuple[Column, ...]
    rows: tuple[tuple[Cell, ...], ...]
    strong: frozenset[int] = frozenset()
    best: frozenset[tuple[int, int]] = frozenset()


@dataclass(frozen=True)
class Figure:
    """A picture, drawn when it is asked for.

    Args:
        draw: its SVG for a width in pixels, WIDE or NARROW.
        alternative: what it shows, in words, for who can't see it.
        caption: how to read it.
    """

    draw: Callable[[int], str]
    alternative: str
    caption: str


@dataclass(frozen=True)
class Text:
    """A paragraph; a lead stands out, a note steps back."""

    text: str
    manner: str = ""


@dataclass(frozen=True)
class Facts:
    """A few figures that stand out: (name, value, remark)."""

    entries: tuple[tuple[str, str, str], ...]


@dataclass(frozen=True)
class Code:
    """Lines to copy."""

    text: str


@dataclass(frozen=True)
class Fold:
    """What is there for who asks for it."""

    summary: str
    blocks: tuple[Block, ...]


@dataclass(frozen=True)
class Heading:
    """A heading within a section."""

    text: str


Block = Table | Figure | Text | Facts | Code | Fold | Heading


@dataclass(frozen=True)
class Section:
    """A part of the page with a heading.

    Args:
        key: its anchor.
        title: its heading.
        blocks: its content.
    """

    key: str
    title: str
    blocks: tuple[Block, ...]


@dataclass(frozen=True)
class Page:
    """A whole report.

    Args:
        title: what was run.
        about: one line of what it was.
        headline: the result in one sentence.
        opening: what stands below the headline.
        sections: in reading order.
    """

    title: str
    about: str
    headline: str
    opening: tuple[Block, ...] = ()
    sections: tuple[Section, ...] = field(default_factory=tuple)


def best_cells(
    rows: Sequence[Sequence[Cell]], column: int, digits: int, higher: bool
) -> set[tuple[int, int]]:
    """The cells of a column that are best as they are printed; none where all are alike.

    Example:
        >>> sorted(best_cells([("a", 0.5), ("b", 0.7), ("c", 0.7)], 1, 3, True))
        [(1, 1), (2, 1)]
    """
    values = {
        place: round(float(row[column]), digits)  # type: ignore[arg-type]
        for place, row in enumerate(rows)
        if isinstance(row[column], int | float) and math.isfinite(float(row[column]))  # type: ignore[arg-type]
    }
    if len(set(values.values())) < 2:
        return set()
    leading = (max if higher else min)(values.values())
    return {(place, column) for place, value in values.items() if value == leading}


def listed(names: Sequence[str], most: int = 8) -> str:
    """Names in a sentence.

    Example:
        >>> listed(["a", "b", "c"]), listed(["a", "b", "c"], most=2)
        ('a, b and c', 'a, b and 1 more')
    """
    shown = list(names[:most])
    if len(names) > most:
        return f"{', '.join(shown)} and {len(names) - most} more"
    return shown[0] if len(shown) == 1 else f"{', '.join(shown[:-1])} and {shown[-1]}" if shown else ""


def count(number: int, noun: str) -> str:
    """A number of things.

    Example:
        >>> count(1, "silo"), count(3, "silo")
        ('1 silo', '3 silos')
    """
    return f"{number} {noun}" if number == 1 else f"{number} {noun}s"
