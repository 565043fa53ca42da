"""Write the tables of docs/rules.md from the rules themselves.

python docs/rules_table.py            # after a rule has joined or changed
python docs/rules_table.py --check    # fails where docs/rules.md is stale
"""

from __future__ import annotations

import argparse
import sys
from pathlib import Path

from fedmerge.project import recipes
from fedmerge.rules import RULES
from fedmerge.rules.facts import KINDS, Facts, facts_of

TARGET = Path(__file__).with_name("rules.md")


def catalogue(found: list[Facts]) -> str:
    """What each rule does, by kind."""
    parts = []
    for kind, meaning in KINDS.items():
        of_kind = [facts for facts in found if facts.kind == kind]
        if of_kind:
            parts += [
                "",
                f"**{kind}**: {meaning}",
                "",
                "| rule and knobs | what it does | paper |",
                "|---|---|---|",
            ]
            parts += [f"| {_named(facts)} | {_cell(facts.summary)} | {_papers(facts)} |" for facts in of_kind]
    return "\n".join(parts[1:])


def needs(found: list[Facts]) -> str:
    """What each rule asks for, and what it can be relied on for."""
    lines = [
        "| rule | kind | sees at once | silos | statistics | random | streams | linear | sums | `like=` "
        "| withstands |",
        "|---|---|---|---|---|---|---|---|---|---|---|",
    ]
    for facts in found:
        if facts.kind != "stages":
            cells = [
                f"`{facts.name}`", facts.kind, facts.scope, facts.clients, ", ".join(facts.needs),
                _yes(facts.random), _yes(facts.streams), _yes(facts.linear),
                str(facts.sums or ""), ", ".join(facts.like), _cell(facts.withstands),
            ]  # fmt: skip
            lines.append("| " + " | ".join(cells) + " |")
    return "\n".join(lines)


def _named(facts: Facts) -> str:
    call = f"`{facts.signature}`"
    there = facts.name in recipes("strategies")
    return f"[{call}](../strategies/{facts.name}.toml)" if there else call


def _papers(facts: Facts) -> str:
    return " ".join(f"[{number}](https://arxiv.org/abs/{number})" for number in facts.papers)


def _yes(answer: bool) -> str:
    return "yes" if answer else ""


def _cell(text: str) -> str:
    return text.replace("|", "\\|")


def renewed(text: str) -> str:
    """The page with fresh tables between its markers."""
    found = [facts_of(name, make) for name, make in RULES.items()]
    for name, table in (("catalogue", catalogue(found)), ("needs", needs(found))):
        begin, end = f"<!-- {name}: python docs/rules_table.py -->\n", f"<!-- end of {name} -->"
        before, _, rest = text.partition(begin)
        _, found_end, after = rest.partition(end)
        if not found_end:
            raise SystemExit(f"{TARGET} has no markers {begin.strip()!r} and {end!r}")
        text = f"{before}{begin}{table}\n{end}{after}"
    return text


def main() -> int:
    """Write or check; the exit status."""
    reader = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    reader.add_argument("--check", action="store_true", help="write nothing, fail where it is stale")
    text = TARGET.read_text(encoding="utf-8")
    fresh = renewed(text)
    if not reader.parse_args().check:
        TARGET.write_text(fresh, encoding="utf-8")
        return 0
    if fresh == text:
        return 0
    print("docs/rules.md is stale: run python docs/rules_table.py", file=sys.stderr)
    return 1


if __name__ == "__main__":
    sys.exit(main())
