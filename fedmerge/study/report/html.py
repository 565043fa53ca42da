"""A report as one HTML file: no network, light and dark, for screens, phones, paper and screen readers."""

from __future__ import annotations

import base64
import hashlib
from html import escape
from pathlib import Path

import fedmerge
from fedmerge.study.report.document import (
    NARROW,
    WIDE,
    Block,
    Code,
    Column,
    Facts,
    Figure,
    Fold,
    Heading,
    Page,
    Section,
    Table,
    Text,
)
from fedmerge.study.report.printable import printable

_HERE = Path(__file__).parent
_LONG = 24
_POLICY = "default-src 'none'; style-src 'unsafe-inline'; script-src 'sha256-{digest}'; img-src data:"
"""Nothing is fetched, and no script runs but the page's own, whatever a file's texts say."""

_PAGE = """<!DOCTYPE html>
<html lang="en">
<head>
<meta charset="utf-8">
<meta name="viewport" content="width=device-width, initial-scale=1">
<meta name="color-scheme" content="light dark">
<meta http-equiv="Content-Security-Policy" content="{policy}">
<title>{title} · fedmerge report</title>
<link rel="icon" href="data:,">
<style>
{style}</style>
</head>
<body>
<a class="skip" href="#main">Skip to the content</a>
<header>
<p class="mark">fedmerge <span>report</span></p>
<nav aria-label="Sections">{links}</nav>
</header>
<main id="main">
<div class="title">
<p class="about">{about}</p>
<h1>{title}</h1>
<p class="headline">{headline}</p>
</div>
{opening}
{sections}
</main>
<footer><p>Written by fedmerge {version}. The numbers of a figure stand in the table beside it.</p></footer>
<script>{script}</script>
</body>
</html>
"""


def html_of(page: Page) -> str:
    """The page as HTML; the same page gives the same text."""
    script = (_HERE / "page.js").read_text(encoding="utf-8")
    digest = base64.b64encode(hashlib.sha256(script.encode()).digest()).decode()
    links = "".join(f'<a href="#{section.key}">{_text(section.title)}</a>' for section in page.sections)
    return _PAGE.format(
        policy=_POLICY.format(digest=digest),
        title=_text(page.title),
        about=_text(page.about),
        headline=_text(page.headline),
        opening=_blocks(page.opening),
        links=links,
        sections="\n".join(map(_section, page.sections)),
        style=(_HERE / "page.css").read_text(encoding="utf-8"),
        script=script,
        version=_text(fedmerge.__version__),
    )


def _text(text: str) -> str:
    return escape(printable(text))


def _section(section: Section) -> str:
    key = escape(section.key)
    return (
        f'<section id="{key}" aria-labelledby="{key}-title">\n'
        f'<h2 id="{key}-title">{_text(section.title)}</h2>\n{_blocks(section.blocks)}\n</section>'
    )


def _blocks(blocks: tuple[Block, ...]) -> str:
    return "\n".join(map(_block, blocks))


def _block(block: Block) -> str:  # noqa: PLR0911 (one kind a line)
    match block:
        case Heading():
            return f"<h3>{_text(block.text)}</h3>"
        case Text():
            return f'<p class="{block.manner or "text"}">{_text(block.text)}</p>'
        case Code():
            return f'<pre tabindex="0"><code>{_text(block.text)}</code></pre>'
        case Facts():
            return f'<dl class="facts">{"".join(_fact(*entry) for entry in block.entries)}</dl>'
        case Fold():
            return (
                f"<details>\n<summary>{_text(block.summary)}</summary>\n{_blocks(block.blocks)}\n</details>"
            )
        case Figure():
            return _figure(block)
        case Table():
            return _table(block)


def _fact(name: str, value: str, remark: str) -> str:
    return f"<div><dt>{_text(name)}</dt><dd><b>{_text(value)}</b><small>{_text(remark)}</small></dd></div>"


def _figure(figure: Figure) -> str:
    """Both drawings; one is shown, and it alone is read out."""
    label = f'<svg role="img" aria-label="{_text(figure.alternative)}" '
    drawings = "".join(
        svg.replace("<svg ", f'{label}class="{name}" ', 1)
        for name, svg in (("wide", figure.draw(WIDE)), ("narrow", figure.draw(NARROW)))
    )
    return f"<figure>{drawings}<figcaption>{_text(figure.caption)}</figcaption></figure>"


def _table(table: Table) -> str:
    """A table in a box that scrolls, by keyboard too, where it is wider or longer than the page."""
    head = "".join(
        f'<th scope="col"{_numeric(column)}>{_text(column.title)}</th>' for column in table.columns
    )
    body = "\n".join(_row(table, place) for place in range(len(table.rows)))
    manner = " long" if len(table.rows) > _LONG else ""
    return (
        f'<div class="table{manner}" role="region" tabindex="0" aria-label="{_text(table.caption)}">\n'
        f"<table>\n<caption>{_text(table.caption)}</caption>\n<thead><tr>{head}</tr></thead>\n"
        f"<tbody>\n{body}\n</tbody>\n</table>\n</div>"
    )


def _row(table: Table, place: int) -> str:
    cells = []
    for column, (settings, cell) in enumerate(zip(table.columns, table.rows[place], strict=True)):
        shown = _text(settings.shown(cell))
        if column == 0:
            cells.append(f'<th scope="row"{_numeric(settings)}>{shown}</th>')
            continue
        best = (place, column) in table.best
        cells.append(f"<td{_numeric(settings)}>{f'<b>{shown}</b>' if best else shown}</td>")
    strong = ' class="strong"' if place in table.strong else ""
    return f"<tr{strong}>{''.join(cells)}</tr>"


def _numeric(column: Column) -> str:
    return "" if column.digits is None else ' class="n"'
