"""Rules of other packages: names that text may use because an installed package offers them.

A package offers rules in its pyproject.toml, for things that text can't say (a rule by tensor name, a knob
that changes over depth):

    [project.entry-points."fedmerge.rules"]
    house_rule = "our_package.merging:house_rule"

The object is a function that returns a rule, its arguments being the knobs in text, or a rule itself. Names
of the catalogue can't be taken over. Nothing is looked up or loaded before a text uses an unknown name.
"""

from __future__ import annotations

from collections.abc import Callable, Iterator, Mapping
from functools import partial, wraps
from importlib.metadata import EntryPoint, entry_points
from typing import Any

from fedmerge.errors import FedMergeError, RuleError
from fedmerge.rules.compose import Rule
from fedmerge.text import Call

GROUP = "fedmerge.rules"


def with_entry_points(call: Call, table: Mapping[str, Callable[..., Any]]) -> dict[str, Callable[..., Any]]:
    """The table, and what installed packages offer under the names in `call` that the table lacks.

    Args:
        call: a rule's text, read.
        table: name -> function.

    Returns:
        A table that also holds, for hints at the nearest name, the names that are not used.

    Raises:
        RuleError: an entry point that is offered twice, can't be loaded, or is neither a function nor a rule.
    """
    unknown = sorted({name for name in _names(call) if name not in table})
    if not unknown:
        return dict(table)
    offered = entry_points(group=GROUP)
    places = {name: list(offered.select(name=name)) for name in sorted(offered.names)}
    found: dict[str, Callable[..., Any]] = {name: partial(_loaded, name, places[name]) for name in places}
    found |= {name: _loaded(name, places[name]) for name in unknown if name in places}
    return {**found, **table}


def _names(value: object) -> Iterator[str]:
    """All names that a call calls, itself first."""
    if isinstance(value, Call):
        yield value.name
        for inner in (*value.arguments, *(knob for _, knob in value.keywords)):
            yield from _names(inner)
    elif isinstance(value, tuple):
        for inner in value:
            yield from _names(inner)


def _loaded(name: str, offers: list[EntryPoint]) -> Callable[..., Rule]:
    """The function behind a name, checked when it is called."""
    if len({offer.value for offer in offers}) > 1:
        places = ", ".join(sorted(repr(offer.value) for offer in offers))
        raise RuleError(f"rule {name!r} is offered more than once in the group {GROUP!r}: {places}")
    place = f"the entry point {offers[0].value!r}"
    try:
        found = offers[0].load()
    except Exception as problem:  # whatever another package's import raises
        raise RuleError(f"rule {name!r}: {place} can't be loaded: {_said(problem)}") from problem
    if isinstance(found, Rule) and not isinstance(found, type):
        return lambda: found
    if not callable(found):
        raise RuleError(f"rule {name!r}: {place} is {found!r}, expected a function that returns a rule")
    return _checked(name, place, found)


def _checked(name: str, place: str, function: Callable[..., Any]) -> Callable[..., Rule]:
    @wraps(function)
    def make(*arguments: Any, **knobs: Any) -> Rule:
        try:
            made = function(*arguments, **knobs)
        except FedMergeError:
            raise
        except Exception as problem:  # whatever another package's code raises
            raise RuleError(f"rule {name!r}: {place} failed: {_said(problem)}") from problem
        if not isinstance(made, Rule) or isinstance(made, type):
            raise RuleError(f"rule {name!r}: {place} returned {made!r}, expected a rule")
        return made

    return make


def _said(problem: Exception) -> str:
    return f"{type(problem).__name__}: {problem}"
