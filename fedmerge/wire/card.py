"""Model cards: the README.md beside a merged result, with the metadata that the Hub reads."""

from __future__ import annotations

import json
import re
import shlex
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field
from pathlib import Path

from fedmerge.wire.folders import is_hub_id


@dataclass(frozen=True)
class Card:
    """What a model card tells.

    Args:
        title: its headline.
        library: "peft" or "transformers".
        relation: of the result to its base on the Hub: "adapter" or "merge".
        base: the base's Hub id, or what else it is called; "" where it is not known.
        merged: what was merged, each with its weight and whatever else is known of it, by column.
        command: the recipe, as words of a command line.
        facts: label -> text, one line each: rule, space, seed, discarded energy.
        tables: headline -> rows; the first row heads the columns.
        versions: package -> version.
    """

    title: str
    library: str
    relation: str
    base: str = ""
    merged: Sequence[str] = ()
    command: Sequence[str] = ()
    facts: Mapping[str, str] = field(default_factory=dict)
    tables: Mapping[str, Sequence[Sequence[str]]] = field(default_factory=dict)
    versions: Mapping[str, str] = field(default_factory=dict)


def card_text(card: Card) -> str:
    """The README.md.

    Paths of this machine are no ids of the Hub, and say more than a reader needs: their last part stays.

    Example:
        >>> print(card_text(Card("Merged", "peft", "adapter", "org/base", facts={"rule": "fedavg()"})))
        ---
        base_model:
        - "org/base"
        base_model_relation: "adapter"
        library_name: "peft"
        tags:
        - merge
        - fedmerge
        ---
        # Merged
        <BLANKLINE>
        - base: `org/base`
        - rule: `fedavg()`
        <BLANKLINE>
    """
    facts = ({"base": public(card.base)} if card.base else {}) | dict(card.facts)
    parts = [f"{_metadata(card)}\n# {_plain(card.title)}\n"]
    parts += ["\n".join(f"- {_plain(label)}: {_code(text)}" for label, text in facts.items()) + "\n"]
    for headline, rows in card.tables.items():
        parts.append(f"## {_plain(headline)}\n\n{_table(rows)}\n")
    if card.command:
        words = shlex.join(public(word) for word in card.command)
        parts.append(f"## Recipe\n\n```bash\n{words.replace('`', '')}\n```\n")
    if card.versions:
        listed = ", ".join(f"{name} {version}" for name, version in card.versions.items())
        parts.append(f"Made with {listed}.\n")
    return "\n".join(parts)


def public(source: str) -> str:
    """A Hub id, rule or name as it is; of a path on this machine the last part.

    Example:
        >>> public("org/base"), public("/home/ann/site-a/"), public("ties(density=0.2)"), public("../b/c")
        ('org/base', 'site-a', 'ties(density=0.2)', 'c')
    """
    path_like = "/" in source and (not is_hub_id(source) or Path(source).exists())
    return Path(source).name if path_like and "(" not in source else source


def _metadata(card: Card) -> str:
    """YAML whose texts are written as JSON strings, which YAML reads alike."""
    models = [card.base] if card.relation == "adapter" else [card.base, *card.merged]
    known = [model for model in dict.fromkeys(models) if is_hub_id(model) and not Path(model).exists()]
    lines = ["---"]
    if known:
        lines += ["base_model:", *(f"- {json.dumps(model)}" for model in known)]
        lines += [f"base_model_relation: {json.dumps(card.relation)}"]
    lines += [f"library_name: {json.dumps(card.library)}", "tags:", "- merge", "- fedmerge", "---"]
    return "\n".join(lines)


def _table(rows: Sequence[Sequence[str]]) -> str:
    head, *body = [[_plain(cell).replace("|", "\\|") for cell in row] for row in rows]
    lines = [head, ["---"] * len(head), *body]
    return "\n".join(f"| {' | '.join(line)} |" for line in lines)


def _code(text: str) -> str:
    return f"`{_plain(text).replace('`', chr(39))}`"


def _plain(text: str) -> str:
    """One line, whatever a hostile name holds."""
    return re.sub(r"[\x00-\x1f\x7f<>]+", " ", text)[:500]
