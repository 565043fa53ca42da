"""Candidate texts: one line that stands for many merges, as a grid or as a space to search.

    ties(density=[0.1, 0.2, 0.5], scale=[0.5, 1.0]) @ [factors(), product()]      a grid of 12
    ties(density=between(0.05, 1.0), scale=log_between(0.1, 5.0)) @ product()     to be searched

The spelling is that of rules and spaces everywhere. What stands in brackets, of either kind, is a choice: of
values for a knob, of whole rules or of whole spaces. A rule of one's own whose knob takes a tuple is given
the tuple in brackets, `weights=[(1, 2)]`: a choice of one.
"""

from __future__ import annotations

import itertools
import math
from collections.abc import Iterable, Iterator, Sequence
from dataclasses import dataclass
from typing import Protocol

from fedmerge.adapters.spaces import parse_space
from fedmerge.errors import RuleError
from fedmerge.rules import Rule, parse_rule
from fedmerge.text import Call, Value, parse_call

DEFAULT_SPACE = "product()"
"""Where a candidate without "@ space" is merged: the space that a run's own configuration has by default."""

RANGES = {"between": False, "log_between": True}
"""A range's name -> whether it is even in the logarithm."""


@dataclass(frozen=True)
class Candidate:
    """One merge: a rule's text and a space's, as `str` writes them.

    Example:
        >>> print(Candidate("ties(density=0.2)", "product()"))
        ties(density=0.2) @ product()
    """

    rule: str
    space: str

    def __str__(self) -> str:
        return f"{self.rule} @ {self.space}"


@dataclass(frozen=True)
class Range:
    """Numbers from `low` to `high`, both included; whole ones where both ends are written so.

    Raises:
        RuleError: ends that are no numbers, in the wrong order, or not above 0 where the logarithm is even.

    Example:
        >>> Range.of(parse_call("log_between(0.1, 5.0)", "range"))
        Range(low=0.1, high=5.0, log=True)
    """

    low: float
    high: float
    log: bool = False

    @classmethod
    def of(cls, call: Call) -> Range:
        """Read `between(low, high)` or `log_between(low, high)`."""
        ends = call.arguments
        sound = len(ends) == 2 and not call.keywords and all(map(_is_number, ends))
        if not sound or not ends[0] < ends[1] or (RANGES[call.name] and ends[0] <= 0):  # type: ignore[operator]
            least = "above 0, " if RANGES[call.name] else ""
            raise RuleError(f"{call}: expected two finite numbers, {least}the smaller one first")
        return cls(ends[0], ends[1], RANGES[call.name])  # type: ignore[arg-type]

    @property
    def whole(self) -> bool:
        """Whether only whole numbers are meant."""
        return isinstance(self.low, int) and isinstance(self.high, int)


class Chooser(Protocol):
    """Whoever decides what a template leaves open: a search."""

    def one_of(self, name: str, labels: Sequence[str]) -> int:
        """The place of the label that is taken."""
        ...

    def number(self, name: str, limits: Range) -> float:
        """A number in a range."""
        ...


@dataclass(frozen=True)
class Template:
    """A candidate text, read: rule and space with choices and ranges still open.

    Args:
        text: as it was written.
        rule: a call, or a choice of calls.
        space: likewise.
    """

    text: str
    rule: Value
    space: Value

    @property
    def is_open(self) -> bool:
        """Whether anything is left to decide: a range, or a choice of two or more."""
        return _open(self.rule) or _open(self.space)

    def grid(self) -> Iterator[Candidate]:
        """Every candidate, in the order written; the last knob changes fastest, then the space.

        Raises:
            RuleError: a range is in it, a name or knob is unknown, or a value is out of range.
        """
        for found in _ranges((self.rule, self.space)):
            raise RuleError(
                f"{self.text!r}: {found} is a range, which a search samples (--search tpe); a grid takes "
                "lists, [0.1, 0.2, 0.5]"
            )
        for rule, space in itertools.product(_variants(self.rule), _variants(self.space)):
            yield _candidate(rule, space)

    def chosen(self, chooser: Chooser, prefix: str = "") -> Candidate:
        """The candidate that a search decides for.

        Args:
            chooser: decides, by the knob's full name: "ties.density", "space.product.rank".
            prefix: of all names, where several templates are searched together.
        """
        rule = _chosen(self.rule, chooser, f"{prefix}rule")
        return _candidate(rule, _chosen(self.space, chooser, f"{prefix}space"))

    def check(self) -> None:
        """Read one corner of everything that is open: a misspelt knob is found before anything is merged.

        Raises:
            RuleError: a name or knob that is unknown, or a value or an end of a range that is out of range.
        """
        for end in (False, True):
            for rule, space in itertools.product(*(_variants(v, end) for v in (self.rule, self.space))):
                _candidate(rule, space)


def parse_template(text: str) -> Template:
    """Read one candidate text.

    Raises:
        RuleError: text that can't be read; the message quotes it.

    Example:
        >>> parse_template("fedavg").space == parse_call("product()", "space")
        True
    """
    rule, *spaces = (part.strip() for part in text.split("@"))
    if len(spaces) > 1 or not rule or not all(spaces):
        raise RuleError(f"candidate {text!r}: expected 'rule @ space'")
    return Template(text, _choice(rule, "rule"), _choice(spaces[0] if spaces else DEFAULT_SPACE, "space"))


def parse_templates(texts: Iterable[str]) -> tuple[Template, ...]:
    """Read candidate texts; each may hold several with ";" between, as `strategy.shadows` does.

    Raises:
        RuleError: a text that can't be read, an unknown name or knob, a value out of range.

    Example:
        >>> len(parse_templates(["fedavg() @ factors(); ties(density=[0.1, 0.2])", "median()"]))
        3
        >>> parse_templates(["ties(densty=[0.1, 0.2])"])
        Traceback (most recent call last):
        fedmerge.errors.RuleError: ties() has no knob 'densty'. Did you mean 'density'? There are: density, \
like, scale, scope, votes
    """
    entries = [entry.strip() for text in texts for entry in text.split(";")]
    templates = tuple(parse_template(entry) for entry in entries if entry)
    for template in templates:
        template.check()
    return templates


def expand(texts: Iterable[str]) -> tuple[Candidate, ...]:
    """All candidates of some texts, each once, in the order written.

    Args:
        texts: as `parse_templates` reads them; lists make a grid.

    Raises:
        RuleError: a text that can't be read, an unknown name or knob, a value out of range, or a range.

    Example:
        >>> for candidate in expand(["ties(density=[0.1, 0.5], scale=[1, 2]) @ product()"]):
        ...     print(candidate)
        ties(density=0.1) @ product()
        ties(density=0.1, scale=2) @ product()
        ties(density=0.5) @ product()
        ties(density=0.5, scale=2) @ product()
        >>> len(expand(["knots(rule=[ties(density=[0.1, 0.2]), fedavg()]) @ [product(), product(rank=32)]"]))
        6
    """
    found = (candidate for template in parse_templates(texts) for candidate in template.grid())
    return tuple(dict.fromkeys(found))


def _choice(text: str, what: str) -> Value:
    """A call, or, in brackets, a choice of calls."""
    if not (text.startswith("[") and text.endswith("]")):
        return parse_call(text, what)
    try:
        inner = parse_call(f"choice({text[1:-1]})", what)
    except RuleError:
        raise RuleError(f"{what}s {text!r} can't be read; expected [name(key=value), ...]") from None
    if inner.keywords or not inner.arguments or not all(isinstance(part, Call) for part in inner.arguments):
        raise RuleError(f"{what}s {text!r}: expected one or more of name(key=value), with commas between")
    return inner.arguments


def _variants(value: Value, end: bool | None = None) -> Iterator[Value]:
    """Everything that a value with choices stands for; of a range its low or high `end`."""
    if isinstance(value, tuple):
        _not_empty(value)
        for part in value:
            yield from [part] if isinstance(part, tuple) else _variants(part, end)
    elif isinstance(value, Call) and value.name in RANGES:
        limits = Range.of(value)
        yield limits.high if end else limits.low
    elif isinstance(value, Call):
        names = [name for name, _ in value.keywords]
        parts = [*value.arguments, *(knob for _, knob in value.keywords)]
        for chosen in itertools.product(*(list(_variants(part, end)) for part in parts)):
            given, knobs = chosen[: len(value.arguments)], chosen[len(value.arguments) :]
            yield Call(value.name, given, tuple(zip(names, knobs, strict=True)))
    else:
        yield value


def _chosen(value: Value, chooser: Chooser, name: str) -> Value:
    """The value that a search decides for."""
    if isinstance(value, tuple):
        _not_empty(value)
        part = value[0] if len(value) == 1 else value[chooser.one_of(name, [str(part) for part in value])]
        return part if isinstance(part, tuple) else _chosen(part, chooser, name)
    if not isinstance(value, Call):
        return value
    if value.name in RANGES:
        return chooser.number(name, Range.of(value))
    inner = f"{name}.{value.name}"
    given = tuple(_chosen(part, chooser, f"{inner}.{place}") for place, part in enumerate(value.arguments))
    knobs = tuple((key, _chosen(knob, chooser, f"{inner}.{key}")) for key, knob in value.keywords)
    return Call(value.name, given, knobs)


def _ranges(value: Value) -> Iterator[Call]:
    if isinstance(value, tuple):
        for part in value:
            yield from _ranges(part)
    elif isinstance(value, Call) and value.name in RANGES:
        yield value
    elif isinstance(value, Call):
        yield from _ranges((*value.arguments, *(knob for _, knob in value.keywords)))


def _open(value: Value) -> bool:
    if isinstance(value, tuple):
        return len(value) > 1 or any(_open(part) for part in value)
    if not isinstance(value, Call):
        return False
    return value.name in RANGES or any(map(_open, (*value.arguments, *(knob for _, knob in value.keywords))))


def _not_empty(choice: tuple[Value, ...]) -> None:
    if not choice:
        raise RuleError("an empty list, []: expected at least one value to choose from")


def _is_number(value: Value) -> bool:
    return isinstance(value, int | float) and not isinstance(value, bool) and math.isfinite(value)


def _candidate(rule: Value, space: Value) -> Candidate:
    """Rule and space as they write themselves, so that one merge has one name."""
    text = str(rule)
    return Candidate(_written(parse_rule(text), text), str(parse_space(str(space))))


def _written(rule: Rule, text: str) -> str:
    """The rule's own text, where that reads as the same rule; one of another package may not."""
    own = str(rule)
    try:
        return own if parse_rule(own) == rule else text
    except RuleError:
        return text
