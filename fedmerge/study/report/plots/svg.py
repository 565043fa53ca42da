"""SVG as matplotlib writes it, made fit for a page: small, coloured by the page, alone with its ids."""

from __future__ import annotations

import hashlib
import re
import xml.etree.ElementTree as ET
from collections.abc import Iterator
from html import escape

PALETTE = (
    "ink", "soft", "line", "paper",
    "merged", "alone", "base", "pooled", "other", "gain", "loss",
    "series-1", "series-2", "series-3", "series-4", "series-5", "series-6",
)  # fmt: skip
"""The CSS variables that pictures are coloured by; `#000001` stands for the first."""

_DRAWING = ("d", "x", "y", "width", "height", "points")
_DROPPED = {"metadata", "style", "title", "desc"}


def cleaned(text: str) -> str:
    """An SVG element for a page, without a size of its own, of what matplotlib wrote.

    Only attributes are rewritten, never texts: a silo may be called like a colour.
    """
    root = ET.fromstring(text)
    salt = hashlib.sha256(text.encode()).hexdigest()[:8]
    for element in root.iter():
        element.tag = element.tag.rpartition("}")[2]
        element.attrib = {
            key.rpartition("}")[2]: _attribute(key.rpartition("}")[2], value, salt)
            for key, value in element.attrib.items()
        }
    used = set(_used(root))
    return _written(root, used)


def _attribute(key: str, value: str, salt: str) -> str:
    if key == "id":
        return f"{salt}-{value}"
    if key == "href":
        return value if value.startswith("data:") else f"#{salt}-{value.removeprefix('#')}"
    value = value.replace("url(#", f"url(#{salt}-")
    if key == "style":
        value = re.sub(r"font-family:[^;]*;?\s*", "", value)
        value = re.sub(r"#0000([0-9a-f]{2})", _variable, value)
    if key in _DRAWING:
        value = re.sub(r"-?\d+\.\d+", _rounded, " ".join(value.split()))
    return value


def _variable(match: re.Match[str]) -> str:
    place = int(match[1], 16)
    return f"var(--{PALETTE[place - 1] if 0 < place <= len(PALETTE) else 'ink'})"


def _rounded(match: re.Match[str]) -> str:
    return f"{float(match[0]):.2f}".rstrip("0").rstrip(".").replace("-0", "0" if match[0] == "-0" else "-0")


def _used(root: ET.Element) -> Iterator[str]:
    for element in root.iter():
        for value in element.attrib.values():
            yield from re.findall(r"url\(#([^)]*)\)", value)
        yield element.attrib.get("href", "").removeprefix("#")


def _written(element: ET.Element, used: set[str]) -> str:
    if element.tag in _DROPPED or element.attrib.get("style") == "fill: none":
        return ""
    attributes = {key: value for key, value in element.attrib.items() if key != "id" or value in used}
    if element.tag == "svg":
        attributes = {"viewBox": attributes["viewBox"]}
    if attributes.get("transform", "").startswith("rotate(-0 "):
        del attributes["transform"]
    inner = "".join(_written(child, used) for child in element)
    inner = escape((element.text or "").strip(), quote=False) + inner
    if element.tag in ("g", "defs") and not inner:
        return ""
    if element.tag == "g" and not attributes:
        return inner
    words = "".join(f' {key}="{escape(value)}"' for key, value in attributes.items())
    return f"<{element.tag}{words}>{inner}</{element.tag}>"
