"""What runs and comparisons say, on one page: `read_sources`, `page_of`, then what it is written as."""

from __future__ import annotations

from fedmerge.study.report.assemble import Sources, page_of, read_sources
from fedmerge.study.report.html import html_of
from fedmerge.study.report.markdown import markdown_of
from fedmerge.study.report.payload import payload_of

__all__ = ["Sources", "html_of", "markdown_of", "page_of", "payload_of", "read_sources"]
