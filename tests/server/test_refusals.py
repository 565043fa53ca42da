"""Every sentence with which a reply can be refused has a kind: the sentences are taken from the source."""

from __future__ import annotations

import ast
from collections.abc import Iterator
from pathlib import Path

import pytest

from fedmerge.server import refusals
from fedmerge.server.refusals import KINDS, OTHER, kind_of

PACKAGE = Path(refusals.__file__).parent.parent
FILES = (
    "server/guard.py", "server/reading.py", "server/gathering.py",
    "wire/schema.py", "wire/records.py", "wire/fields.py", "wire/sender.py",
)  # fmt: skip
SPEAKERS = {"WireError", "Refusal", "drop"}
OURS = {"EXAMPLES": "num-examples"}


def spoken(node: ast.AST) -> str:
    """A string of the source as it may come out: names and numbers that it quotes are made up."""
    if isinstance(node, ast.Constant):
        return str(node.value)
    if isinstance(node, ast.JoinedStr):
        return "".join(spoken(value) for value in node.values)
    if isinstance(node, ast.FormattedValue):
        return quoted(node)
    if isinstance(node, ast.BinOp):
        return spoken(node.left) + spoken(node.right)
    return "'x'"


def quoted(node: ast.FormattedValue) -> str:
    value = node.value
    if isinstance(value, ast.Name) and value.id in OURS:
        return repr(OURS[value.id])
    if isinstance(value, ast.Call) and getattr(value.func, "id", "") == "shown":
        return "'x'"
    return "7"


def sentences() -> Iterator[tuple[str, str]]:
    for name in FILES:
        for node in ast.walk(ast.parse((PACKAGE / name).read_text(encoding="utf-8"))):
            if isinstance(node, ast.Call):
                speaker = getattr(node.func, "id", getattr(node.func, "attr", ""))
                texts = [
                    each for each in node.args if isinstance(each, ast.JoinedStr | ast.BinOp | ast.Constant)
                ]
                texts = [text for text in texts if not isinstance(getattr(text, "value", ""), int)]
                if speaker in SPEAKERS and texts:
                    yield f"{name}:{node.lineno}", spoken(texts[-1])


FOUND = sorted(sentences())


def test_the_sentences_are_found() -> None:
    assert len(FOUND) > 20


@pytest.mark.parametrize(("place", "sentence"), FOUND, ids=[place for place, _ in FOUND])
def test_every_sentence_has_a_kind(place: str, sentence: str) -> None:
    assert kind_of(sentence) != OTHER, sentence


@pytest.mark.parametrize(
    ("sentence", "kind"),
    [
        ("a second reply to the same message", "duplicate"),
        ("another node answered under the same name", "duplicate"),
        ("it is of round 2, this is round 3", "round"),
        ("it calls itself 'a', but the message went to 'b'", "unknown-silo"),
        ("its base is another: fingerprint unknown, expected 'abc'", "base"),
        ("'layers.0.lora_A' has 1 NaN and 0 infinite of 4 values", "not-finite"),
        ("'layers.0.lora_A' has shape (16, 768), the broadcast has (8, 768)", "tensors"),
        ("'num-examples' is nan, expected a number above 0 and at most 1e+12", "weight"),
        ("it has no metric 'num-examples'", "weight"),
        ("Flower error 5, the node is gone", "lost"),
        ("Flower error 8, the ClientApp crashed", "crash"),
        ("failed with 'OutOfMemoryError'", "crash"),
        ("failed with 'policy/max-rounds'", "policy"),
        ("policy/max-rounds", "policy"),
        ("its delta is far longer than the others'", "outlier"),
        ("'fisher of q' is negative in 3 of 4 values; it is a mean of squares", "statistics"),
        ("", OTHER),
    ],
)
def test_kinds(sentence: str, kind: str) -> None:
    assert kind_of(sentence) == kind


def test_what_a_silo_quotes_does_not_choose_the_kind() -> None:
    assert kind_of("the record has 'nonce signature revoked' too many; 2 tensors are expected") == "tensors"


def test_kinds_are_few_and_can_be_labels() -> None:
    assert len(KINDS) < 25
    assert len(set(KINDS)) == len(KINDS)
    assert all(kind.replace("-", "").isalpha() for kind in KINDS)
