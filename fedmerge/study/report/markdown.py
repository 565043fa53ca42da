"""A report as Markdown, with tables as GitHub shows them; the figures' numbers stand in the tables."""

from __future__ import annotations

import re

from fedmerge.study.report.document import Block, Code, Facts, Figure, Fold, Heading, Page, Table, Text
from fedmerge.study.report.printable import printable


def markdown_of(page: Page) -> str:
    """The page as Markdown."""
    parts = [
        f"# {_text(page.title)}",
        _text(page.about),
        f"**{_text(page.headline)}**",
        *_blocks(page.opening),
    ]
    for section in page.sections:
        parts += [f"## {_text(section.title)}", *_blocks(section.blocks)]
    return "\n\n".join(parts) + "\n"


def _blocks(blocks: tuple[Block, ...]) -> list[str]:
    return [text for block in blocks if (text := _block(block))]


def _block(block: Block) -> str:  # noqa: PLR0911 (one kind a line)
    match block:
        case Heading():
            return f"### {_text(block.text)}"
        case Text():
            return _text(block.text)
        case Code():
            fence = "`" * max(3, 1 + max(map(len, re.findall("`+", block.text)), default=0))
            return f"{fence}\n{printable(block.text)}\n{fence}"
        case Facts():
            return "\n".join(
                f"- {_text(name)}: **{_text(value)}** ({_text(remark)})"
                for name, value, remark in block.entries
            )
        case Fold():
            inner = "\n\n".join(_blocks(block.blocks))
            return f"<details>\n<summary>{_text(block.summary)}</summary>\n\n{inner}\n\n</details>"
        case Figure():
            return ""
        case Table():
            return _table(block)


def _table(table: Table) -> str:
    head = "| " + " | ".join(_text(column.title) for column in table.columns) + " |"
    rule = "|" + "|".join("---" if column.digits is None else "---:" for column in table.columns) + "|"
    rows = []
    for place, row in enumerate(table.rows):
        cells = [_text(column.shown(cell)) for column, cell in zip(table.columns, row, strict=True)]
        cells = [
            f"**{cell}**" if cell and (place, at) in table.best else cell for at, cell in enumerate(cells)
        ]
        rows.append("| " + " | ".join(cells) + " |")
    return "\n".join([f"{_text(table.caption)}", "", head, rule, *rows])


def _text(text: str) -> str:
    r"""Text that Markdown takes for nothing else, on one line.

    Example:
        >>> _text("<b> a_b | c")
        '&lt;b&gt; a\\_b \\| c'
    """
    flat = " ".join(printable(text).split())
    flat = flat.replace("&", "&amp;").replace("<", "&lt;").replace(">", "&gt;")
    return re.sub(r"([\\`*_\[\]|~#])", r"\\\1", flat)
