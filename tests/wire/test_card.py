"""Model cards: YAML that reads back, no paths of this machine, nothing that a hostile name could inject."""

from __future__ import annotations

import yaml
from hypothesis import given, settings
from hypothesis import strategies as st

from fedmerge.wire.card import Card, card_text


def front(text: str) -> tuple[dict[str, object], str]:
    _, metadata, body = text.split("---\n", 2)
    return yaml.safe_load(metadata), body


def test_metadata_of_a_merge_name_all_models_of_the_hub(tmp_path):
    merged = ["org/one", "../site-a", str(tmp_path), "org/base"]
    metadata, _ = front(card_text(Card("Merged", "transformers", "merge", "org/base", merged)))
    assert metadata == {
        "base_model": ["org/base", "org/one"],
        "base_model_relation": "merge",
        "library_name": "transformers",
        "tags": ["merge", "fedmerge"],
    }


def test_a_base_that_is_no_hub_id_is_told_and_not_linked(tmp_path):
    metadata, body = front(card_text(Card("Merged", "peft", "adapter", str(tmp_path / "my-base"))))
    assert "base_model" not in metadata
    assert "- base: `my-base`" in body
    assert str(tmp_path) not in body


def test_tables_recipe_and_versions():
    card = Card(
        "Merged", "peft", "adapter",
        command=["fedmerge", "merge", "/home/ann/a", "--rule", "ties(density=0.2)"],
        tables={"Models": [["model", "weight"], ["a|b", "1"]]}, versions={"fedmerge": "0.1.0"},
    )  # fmt: skip
    text = card_text(card)
    assert "| model | weight |\n| --- | --- |\n| a\\|b | 1 |" in text
    assert "```bash\nfedmerge merge a --rule 'ties(density=0.2)'\n```" in text
    assert "Made with fedmerge 0.1.0." in text


@settings(max_examples=50, deadline=None)
@given(st.text(max_size=60))
def test_whatever_a_name_holds_the_card_stays_whole(name):
    card = Card(
        name, "peft", "adapter", name, [name], ["fedmerge", name], {"rule": name}, {"T": [["a"], [name]]}
    )
    metadata, body = front(card_text(card))
    assert metadata["tags"] == ["merge", "fedmerge"]
    assert "<script" not in body
    assert body.count("```") in (2, 0) or "`" not in name
