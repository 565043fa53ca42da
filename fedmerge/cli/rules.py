"""`fedmerge rules`: the catalogue of merge rules."""

from __future__ import annotations

from dataclasses import asdict
from typing import TYPE_CHECKING, Annotated, Any

import typer

from fedmerge.cli.manner import Outcome
from fedmerge.errors import RuleError, nearest

if TYPE_CHECKING:
    from rich.console import RenderableType
    from rich.table import Table

    from fedmerge.rules.facts import Facts

STATISTICS = {"fisher": "Fisher diagonals", "gram": "Gram matrices"}
WIDEST_NAME = 16


def rules(
    name: Annotated[str, typer.Argument(help="A rule, to read all about it.", show_default=False)] = "",
) -> Outcome:
    """List the merge rules, or explain one: formula, knobs, example, paper."""
    from fedmerge.rules import RULES
    from fedmerge.rules.facts import facts_of

    if not name:
        found = [facts_of(known, make) for known, make in RULES.items()]
        return Outcome({"rules": [payload(facts) for facts in found]}, _listing(found))
    bare = name.partition("(")[0].strip()
    if bare not in RULES:
        raise RuleError(f"rule {bare!r} is unknown; {nearest(bare, RULES)}")
    facts = facts_of(bare, RULES[bare])
    return Outcome(payload(facts), _page(facts))


def payload(facts: Facts) -> dict[str, Any]:
    """A rule as `--json` has it: its facts, and the strategy file that offers it."""
    return {**asdict(facts), "strategy": recipe_of(facts.name)}


def recipe_of(name: str) -> str | None:
    """The strategy file of a rule's name, where there is one.

    Example:
        >>> recipe_of("ties"), recipe_of("chain")
        ('strategies/ties.toml', None)
    """
    from fedmerge.project import recipes

    return f"strategies/{name}.toml" if name in recipes("strategies") else None


def needs_in_words(facts: Facts) -> str:
    """What a rule asks for beyond deltas and weights.

    Example:
        >>> from fedmerge.rules import fisher, krum, ties
        >>> from fedmerge.rules.facts import facts_of
        >>> [needs_in_words(facts_of(rule.__name__, rule)) for rule in (ties, krum, fisher)]
        ['', '5 or more silos', 'Fisher diagonals']
    """
    wanted = [STATISTICS.get(statistic, statistic) for statistic in facts.needs]
    return ", ".join(([] if facts.clients == "any" else [f"{facts.clients} silos"]) + wanted)


def _listing(found: list[Facts]) -> list[RenderableType]:
    """All rules, by kind and by what their family is about."""
    from rich.text import Text

    from fedmerge.rules.facts import KINDS

    shown: list[RenderableType] = []
    for kind, meaning in KINDS.items():
        of_kind = [facts for facts in found if facts.kind == kind]
        if of_kind:
            heading = Text.assemble((kind, "bold underline"), f"  {meaning}")
            shown += [heading, _table(of_kind), ""]
    bare = [facts.name for facts in found if recipe_of(facts.name) is None]
    unless = f" (not for {', '.join(bare)})" if bare else ""
    note = f"fedmerge rules NAME explains one; strategies/NAME.toml{unless} is a recipe with it."
    return [*shown, Text(note)]


def _table(found: list[Facts]) -> Table:
    from rich.table import Table
    from rich.text import Text

    table = Table(box=None, show_header=False, pad_edge=True, padding=(0, 1), expand=False)
    table.add_column(style="bold", no_wrap=True, min_width=WIDEST_NAME)
    table.add_column(ratio=1)
    table.add_column(style="dim", no_wrap=True, min_width=10)
    for index, facts in enumerate(found):
        following = found[index + 1].family if index + 1 < len(found) else facts.family
        needs = needs_in_words(facts)
        table.add_row(
            Text(facts.name),
            Text.assemble(facts.summary, (f" Needs {needs}." if needs else "", "italic")),
            Text("\n".join(facts.papers)),
        )
        if following != facts.family:
            table.add_row()
    return table


def _page(facts: Facts) -> list[RenderableType]:
    """One rule: what it is in a few lines, then its docstring."""
    from rich.table import Table
    from rich.text import Text

    from fedmerge.rules.facts import KINDS

    table = Table(box=None, show_header=False, pad_edge=False, padding=(0, 2, 0, 0))
    table.add_column(style="dim", no_wrap=True)
    table.add_column()
    rows = {
        "kind": f"{facts.kind}: {KINDS.get(facts.kind, '')}",
        "sees at once": f"one {facts.scope}" if facts.scope != "adapter" else "the whole adapter",
        "silos": facts.clients,
        "needs": ", ".join(STATISTICS.get(name, name) for name in facts.needs) or "deltas and weights",
        "draws masks": "yes, keyed by seed, round, silo, tensor and element" if facts.random else "",
        "streams": "yes: memory does not grow with the number of silos" if facts.streams else "",
        "from sums alone": f"yes, {facts.sums} of them (secure aggregation)" if facts.sums else "",
        "withstands": facts.withstands,
        "like": ", ".join(facts.like),
        "recipe": recipe_of(facts.name) or "",
    }
    for title, value in rows.items():
        if value and facts.kind != "stages":
            table.add_row(title, Text(value))
    shown: list[RenderableType] = [Text(facts.signature, style="bold"), ""]
    if table.row_count:
        shown += [table, ""]
    return [*shown, facts.docstring]
