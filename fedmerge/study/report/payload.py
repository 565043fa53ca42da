"""A report as plain values: the same sections, sentences and tables, numbers in full."""

from __future__ import annotations

from typing import Any

from fedmerge.study.report.document import Block, Code, Facts, Figure, Fold, Heading, Page, Table, Text


def payload_of(page: Page) -> dict[str, Any]:
    """The page as one object that JSON can carry."""
    return {
        "kind": "report",
        "title": page.title,
        "about": page.about,
        "headline": page.headline,
        "opening": [_block(block) for block in page.opening],
        "sections": [
            {
                "key": section.key,
                "title": section.title,
                "blocks": [_block(block) for block in section.blocks],
            }
            for section in page.sections
        ],
    }


def _block(block: Block) -> dict[str, Any]:  # noqa: PLR0911 (one kind a line)
    match block:
        case Heading():
            return {"heading": block.text}
        case Text():
            return {"text": block.text}
        case Code():
            return {"code": block.text}
        case Facts():
            keys = ("name", "value", "remark")
            return {"facts": [dict(zip(keys, entry, strict=True)) for entry in block.entries]}
        case Fold():
            return {"summary": block.summary, "blocks": [_block(inner) for inner in block.blocks]}
        case Figure():
            return {"figure": block.caption, "alternative": block.alternative}
        case Table():
            return {
                "table": block.caption,
                "columns": [column.title for column in block.columns],
                "rows": [list(row) for row in block.rows],
            }
