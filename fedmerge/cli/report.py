"""`fedmerge report`: what runs and comparisons say, on one page."""

from __future__ import annotations

import json
from enum import StrEnum
from pathlib import Path
from typing import TYPE_CHECKING, Annotated

import typer

from fedmerge.cli.manner import Outcome, plain, size

if TYPE_CHECKING:
    from fedmerge.study.report.document import Page


class Format(StrEnum):
    """What a report is written as."""

    html = "html"
    md = "md"
    json = "json"


def report(
    runs: Annotated[
        list[Path],
        typer.Argument(metavar="RUN...", help="Folders of runs, or of comparisons.", show_default=False),
    ],
    output: Annotated[
        Path | None,
        typer.Option(
            "-o", "--output", help="The file; default: report.html in the first folder.", show_default=False
        ),
    ] = None,
    form: Annotated[
        Format, typer.Option("--format", help="A page, Markdown as GitHub shows it, or one JSON object.")
    ] = Format.html,
) -> Outcome:
    """Write one self-contained page about runs: scores, silos that won or lost, geometry, costs, settings."""
    from fedmerge.server import storage
    from fedmerge.study.report import page_of, payload_of, read_sources

    path = (output or runs[0] / f"report.{form}").expanduser().absolute()
    page = page_of(read_sources(runs))
    text = _written(page, form)
    with storage.writing(path):
        storage.write_text(path, text)
    payload = {"report": path, "bytes": len(text.encode()), **payload_of(page)}
    return Outcome(payload, [page.headline, f"report   {path}  ({size(len(text.encode()))})"])


def _written(page: Page, form: Format) -> str:
    from fedmerge.study.report import html_of, markdown_of, payload_of

    if form is Format.html:
        return html_of(page)
    if form is Format.md:
        return markdown_of(page)
    return json.dumps(plain(payload_of(page)), indent=2, ensure_ascii=False, allow_nan=False) + "\n"
