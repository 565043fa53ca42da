from __future__ import annotations

import sys

import pytest

from fedmerge.errors import ConfigError
from fedmerge.silo.builtin import corpus
from fedmerge.silo.builtin.corpus import SILOS, corpus_hash, silo_documents, split_of


@pytest.mark.parametrize("silo", SILOS)
def test_every_silo_has_all_splits_with_enough_text(silo: str) -> None:
    sizes = dict.fromkeys(("train", "validation", "test"), 0)
    for document in silo_documents(silo):
        sizes[split_of(document.name)] += len(document.text)
    assert min(sizes.values()) > 4_000
    assert sizes["train"] > sizes["test"]


def test_documents_are_sorted_distinct_and_not_empty() -> None:
    for silo in SILOS:
        documents = silo_documents(silo)
        names = [document.name for document in documents]
        assert names == sorted(set(names))
        assert all(document.text.strip() for document in documents)


def test_no_document_of_a_silo_was_seen_in_pretraining() -> None:
    silos = {document.name for silo in SILOS for document in silo_documents(silo)}
    seen = [
        document.name for held in (False, True) for document in corpus.pretraining_documents(held_out=held)
    ]
    assert len(seen) == len(set(seen))
    assert not silos & set(seen)
    assert not any(name.startswith(("test/", "site-packages/", "pydoc_data/")) for name in seen)


def test_splits_depend_on_names_alone_and_never_move() -> None:
    # The built-in base was pretrained on the other side of these lines.
    names = ("asyncio/events.py", "asyncio/tasks.py", "asyncio/streams.py", "xml/__init__.py", "topics/with")
    assert [split_of(name) for name in names] == ["train", "train", "test", "train", "train"]


def test_an_unknown_silo_names_the_nearest() -> None:
    with pytest.raises(ConfigError, match="did you mean 'asyncio'"):
        silo_documents("asyncoi")


def test_a_python_without_the_text_is_told(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setitem(sys.modules, "pydoc_data.topics", None)
    with pytest.raises(ConfigError, match="carries no text of it"):
        silo_documents("prose")


def test_the_hash_covers_names_texts_and_their_bounds() -> None:
    document = corpus.Document
    hashes = {
        corpus_hash(documents)
        for documents in (
            [document("a", "bc")],
            [document("ab", "c")],
            [document("a", "b"), document("", "c")],
            [document("a", "bd")],
        )
    }
    assert len(hashes) == 4
