"""Every code with which the server refuses a reply has a kind: the codes are taken from the source."""

from __future__ import annotations

import re
from pathlib import Path

import pytest

from fedmerge.server import refusals
from fedmerge.server.guard import Refusal
from fedmerge.server.refusals import KINDS, OTHER, kind_of

PACKAGE = Path(refusals.__file__).parent.parent
_CODE = re.compile(r"""["`](reply/[a-z-]+)["`]|^(reply/[a-z-]+) | (reply/[a-z-]+)  """, re.MULTILINE)
CODES = sorted(
    {
        code
        for room in ("server", "wire", "server_app")
        for path in (PACKAGE / room).rglob("*.py")
        for found in _CODE.findall(path.read_text(encoding="utf-8"))
        for code in found
        if code
    }
)


def test_the_codes_are_found() -> None:
    assert len(CODES) >= 19


@pytest.mark.parametrize("code", [*CODES, Refusal(1, "a", "").code])
def test_every_code_has_a_kind(code: str) -> None:
    assert kind_of(code) == code.removeprefix("reply/")


@pytest.mark.parametrize(
    ("code", "kind"),
    [
        ("flower/5", "flower"),
        ("policy/max-rounds", "policy"),
        ("silo/failed", "failed"),
        ("reply/made-up-by-a-silo", OTHER),
        ("made-up-by-a-silo", OTHER),
        ("", OTHER),
    ],
)
def test_kinds_of_what_others_say(code: str, kind: str) -> None:
    assert kind_of(code) == kind


def test_kinds_are_few_and_can_be_labels() -> None:
    assert len(KINDS) < 25
    assert len(set(KINDS)) == len(KINDS)
    assert all(kind.replace("-", "").isalpha() for kind in KINDS)
