"""One number of a rule, changed: what tuning turns."""

from __future__ import annotations

import inspect
import math

from fedmerge.errors import ConfigError, RuleError
from fedmerge.rules import RULES, Chain, parse_rule
from fedmerge.text import Call, parse_call, render

GRIDS: dict[str, tuple[float, ...]] = {
    # From a tenth of the rule's own step to five times it, each about 1.75 times the one before: of ten
    # silos' sum that holds the mean, a tenth, and the three tenths that task arithmetic likes.
    "scale": (0.1, 0.175, 0.3, 0.55, 1.0, 1.75, 3.0, 5.0),
    "density": (0.05, 0.1, 0.2, 0.35, 0.5, 0.7, 0.9, 1.0),
}
"""Values tried for a knob where none are given."""


def parse_tune(text: str) -> tuple[str, tuple[float, ...]]:
    """Read `knob` or `knob=value,value`.

    Raises:
        ConfigError: no values are given, and there are none of its own for the knob; or one is no number.

    Example:
        >>> parse_tune("scale=0.1,1")
        ('scale', (0.1, 1.0))
        >>> parse_tune("trim")
        Traceback (most recent call last):
        fedmerge.errors.ConfigError: --tune trim: say which values to try, as in trim=0.1,0.5,1.0
    """
    knob, given, values = (part.strip() for part in text.partition("="))
    if not given and knob in GRIDS:
        return knob, GRIDS[knob]
    try:
        numbers = tuple(float(value) for value in values.split(",") if value.strip())
    except ValueError:
        numbers = ()
    if not knob.isidentifier() or not numbers or not all(map(math.isfinite, numbers)):
        raise ConfigError(f"--tune {text}: say which values to try, as in {knob or 'scale'}=0.1,0.5,1.0")
    return knob, tuple(dict.fromkeys(numbers))


def with_knob(rule: str, knob: str, value: float) -> str | None:
    """A rule's text with one knob at a value; None where the rule has no such knob.

    Every rule that is a chain of stages has a scale: a last stage `scale(factor=...)` makes its step longer
    or shorter. A rule inside a rule is asked where the outer one has no such knob.

    Raises:
        RuleError: a value that the rule can't take.

    Example:
        >>> with_knob("ties(density=0.2)", "scale", 0.5)
        'ties(density=0.2, scale=0.5)'
        >>> with_knob("fedavg()", "scale", 3.0), with_knob("knots(rule=ties())", "scale", 3.0)
        ('chain(mean(), scale(factor=3.0))', 'knots(rule=ties(density=0.2, scale=3.0))')
        >>> with_knob("regmean()", "scale", 3.0) is None
        True
    """
    call = _turned(parse_call(rule, "rule"), knob, value)
    if call is not None:
        return str(parse_rule(_text(call)))
    made = parse_rule(rule)
    if knob == "scale" and isinstance(made, Chain):
        stages = ", ".join(str(stage) for stage in made.stages)
        return str(parse_rule(f"chain({stages}, scale(factor={value!r}))"))
    return None


def tunable(rule: str, knob: str) -> bool:
    """Whether a rule has the knob."""
    try:
        return with_knob(rule, knob, 1.0) is not None
    except RuleError:
        return True  # it has, and takes no 1.0


def _turned(call: Call, knob: str, value: float) -> Call | None:
    function = RULES.get(call.name)
    if function is not None and call.name != "chain" and knob in inspect.signature(function).parameters:
        kept = [(key, old) for key, old in call.keywords if key != knob]
        return Call(call.name, call.arguments, (*kept, (knob, value)))
    for place, (key, inner) in enumerate(call.keywords):
        if isinstance(inner, Call) and (turned := _turned(inner, knob, value)) is not None:
            keywords = list(call.keywords)
            keywords[place] = (key, turned)
            return Call(call.name, call.arguments, tuple(keywords))
    default = _inner_default(call)
    if default is not None and (turned := _turned(default[1], knob, value)) is not None:
        return Call(call.name, call.arguments, (*call.keywords, (default[0], turned)))
    return None


def _inner_default(call: Call) -> tuple[str, Call] | None:
    """The rule that a rule holds if none is written: that of `knots()` is a default argument."""
    function = RULES.get(call.name)
    if function is None or any(key == "rule" for key, _ in call.keywords):
        return None
    parameter = inspect.signature(function).parameters.get("rule")
    if parameter is None or parameter.default is inspect.Parameter.empty:
        return None
    return "rule", parse_call(str(parameter.default), "rule")


def _text(call: Call) -> str:
    """A call as text, nested ones too."""
    arguments = [_Written(_text(value)) if isinstance(value, Call) else value for value in call.arguments]
    keywords = {
        key: _Written(_text(value)) if isinstance(value, Call) else value for key, value in call.keywords
    }
    return render(call.name, keywords, arguments=arguments)


class _Written:
    """Text that `render` leaves as it is."""

    def __init__(self, text: str) -> None:
        self._text = text

    def __str__(self) -> str:
        return self._text
