"""The one small language of fedmerge: `name(key=literal, nested(...))`.

Rules, spaces, partitions and server optimizers are all written so, with the same spelling in Python, TOML, on
the command line and in reports. The text is read with `ast`; nothing in it is ever evaluated.
"""

from __future__ import annotations

import ast
import inspect
import warnings
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass
from typing import Any, TypeAlias

from fedmerge.errors import FedMergeError, RuleError, nearest

Value: TypeAlias = "int | float | str | bool | Call | tuple[Value, ...] | None"

LONGEST_TEXT = 10_000
"""Characters. Real texts have under 200; the limit keeps hostile nesting away from Python's parser."""


@dataclass(frozen=True)
class Call:
    """A name with its arguments, read but not yet looked up.

    Args:
        name: what is called.
        arguments: the positional ones: literals, tuples, nested calls.
        keywords: pairs of name and value, in the order written.

    Example:
        >>> print(parse_call("knots(rule = ties(density=[.1, .2]))", "rule"))
        knots(rule=ties(density=(0.1, 0.2)))
    """

    name: str
    arguments: tuple[Value, ...] = ()
    keywords: tuple[tuple[str, Value], ...] = ()

    def __str__(self) -> str:
        """Text that `parse_call` reads as this call."""
        return render(self.name, dict(self.keywords), arguments=self.arguments)


def parse_call(text: str, what: str) -> Call:
    """Read `name(key=literal, nested(...))`; a bare name is a call without arguments.

    Args:
        text: the text; literals are numbers, strings, booleans, None, tuples and lists (read as tuples).
        what: what the text stands for ("rule", "space"), used in errors.

    Returns:
        The call, with nested calls inside it.

    Raises:
        RuleError: where the text is no such call; the message quotes the text and the part at fault.

    Example:
        >>> parse_call("ties(density=0.2)", "rule")
        Call(name='ties', arguments=(), keywords=(('density', 0.2),))
        >>> parse_call("fedavg", "rule") == parse_call("fedavg()", "rule")
        True
    """
    if not isinstance(text, str):
        raise RuleError(f"a {what} is written as text such as 'name(key=1)', got {type(text).__name__}")
    if len(text) > LONGEST_TEXT:
        raise RuleError(f"{what} text has {len(text)} characters, at most {LONGEST_TEXT} are read")
    try:
        with warnings.catch_warnings():
            warnings.simplefilter("error")
            node = ast.parse(text.strip(), mode="eval").body
        return _call(node)
    except _Unreadable as problem:
        raise RuleError(f"{what} {text!r}: {problem}") from None
    except (SyntaxError, ValueError, RecursionError, MemoryError) as problem:
        reason = getattr(problem, "msg", None) or "nested too deeply"
        raise RuleError(f"{what} {text!r} can't be read ({reason}); expected name(key=value, ...)") from None


class _Unreadable(Exception):
    """A part of the text that is no literal and no call."""


def _call(node: ast.expr) -> Call:
    if isinstance(node, ast.Name):
        return Call(node.id)
    if not (isinstance(node, ast.Call) and isinstance(node.func, ast.Name)):
        raise _Unreadable(f"expected name(key=value, ...), found {ast.unparse(node)!r}")
    names = [keyword.arg for keyword in node.keywords]
    if twice := [name for name in names if names.count(name) > 1]:
        raise _Unreadable(f"{twice[0] or '**'!r} is given twice in {node.func.id}()")
    arguments = tuple(_argument(argument) for argument in node.args)
    return Call(node.func.id, arguments, tuple(_keyword(keyword) for keyword in node.keywords))


def _argument(node: ast.expr) -> Value:
    """A positional argument, where a bare name is a call: `chain(elect_sign, mean)`."""
    return _call(node) if isinstance(node, ast.Name) else _value(node)


def _keyword(keyword: ast.keyword) -> tuple[str, Value]:
    if keyword.arg is None:
        raise _Unreadable("'**' can't be used here; write each key=value")
    if isinstance(keyword.value, ast.Name):
        name = keyword.value.id
        raise _Unreadable(f"{keyword.arg}={name} is no literal; write {keyword.arg}={name!r} for a string")
    return keyword.arg, _value(keyword.value)


def _value(node: ast.expr) -> Value:
    if isinstance(node, ast.Constant) and isinstance(node.value, int | float | str | None):
        return node.value
    if isinstance(node, ast.UnaryOp) and isinstance(node.op, ast.USub | ast.UAdd):
        return _signed(node)
    if isinstance(node, ast.Tuple | ast.List):
        return tuple(_value(element) for element in node.elts)
    if isinstance(node, ast.Call):
        return _call(node)
    raise _Unreadable(
        f"{ast.unparse(node)!r} is no literal (number, string, True, False, None, tuple) and no call"
    )


def _signed(node: ast.UnaryOp) -> Value:
    number = node.operand.value if isinstance(node.operand, ast.Constant) else None
    if isinstance(number, bool) or not isinstance(number, int | float):
        raise _Unreadable(f"{ast.unparse(node)!r} is no number")
    return -number if isinstance(node.op, ast.USub) else number


def build(
    call: Call, table: Mapping[str, Callable[..., Any]], what: str, error: type[FedMergeError] = RuleError
) -> Any:
    """Look a call up in an explicit table and make what it names, nested calls first.

    Args:
        call: what `parse_call` read.
        table: name -> function or class; only these can be called.
        what: what the text stands for ("rule", "space"), used in errors.
        error: the type raised.

    Returns:
        What the function of that name returned.

    Raises:
        FedMergeError: of type `error`: an unknown name or knob (with the nearest known one), or arguments
        that
            the function can't take. Errors that the function raises on purpose pass through.

    Example:
        >>> build(parse_call("point(x=1, y=-2)", "point"), {"point": complex}, "point")
        Traceback (most recent call last):
        fedmerge.errors.RuleError: point() has no knob 'x'. There are: imag, real
        >>> build(parse_call("pair(1, y=(2, 3))", "pair"), {"pair": lambda x, y: (x, y)}, "pair")
        (1, (2, 3))
    """
    if call.name not in table:
        raise error(f"unknown {what} {call.name!r}: {nearest(call.name, table)}")
    function = table[call.name]
    arguments = [_built(value, table, what, error) for value in call.arguments]
    keywords = {key: _built(value, table, what, error) for key, value in call.keywords}
    signature = inspect.signature(function)
    _check_knobs(call.name, keywords, signature, error)
    try:
        signature.bind(*arguments, **keywords)
        return function(*arguments, **keywords)
    except TypeError as problem:
        raise error(
            f"{what} {call.name}() can't be made: {problem}; it is called as {call.name}{signature}"
        ) from problem


def _built(
    value: Value, table: Mapping[str, Callable[..., Any]], what: str, error: type[FedMergeError]
) -> Any:
    if isinstance(value, Call):
        return build(value, table, what, error)
    if isinstance(value, tuple):
        return tuple(_built(element, table, what, error) for element in value)
    return value


def _check_knobs(
    name: str, keywords: Mapping[str, object], signature: inspect.Signature, error: type[FedMergeError]
) -> None:
    kinds = {parameter.kind for parameter in signature.parameters.values()}
    if inspect.Parameter.VAR_KEYWORD in kinds:
        return
    named = (inspect.Parameter.POSITIONAL_OR_KEYWORD, inspect.Parameter.KEYWORD_ONLY)
    known = [key for key, parameter in signature.parameters.items() if parameter.kind in named]
    for key in keywords:
        if key not in known:
            hint = nearest(key, known) if known else "It has none"
            raise error(f"{name}() has no knob {key!r}. {hint[0].upper()}{hint[1:]}")


def render(
    name: str,
    keywords: Mapping[str, object],
    defaults: Mapping[str, object] | None = None,
    arguments: Sequence[object] = (),
) -> str:
    """Write a call back as text; what equals its default is left out.

    Args:
        name: what is called.
        keywords: name -> value, written in this order; nested rules and stages are written by their `str`.
        defaults: values that need not be written.
        arguments: positional values, written first.

    Returns:
        Text that `parse_call` reads back.

    Example:
        >>> render("ties", {"density": 0.2, "scale": 1.0, "like": "peft"}, {"scale": 1.0, "like": None})
        "ties(density=0.2, like='peft')"
    """
    unsaid = defaults or {}
    parts = [_literal(value) for value in arguments]
    parts += [
        f"{key}={_literal(value)}"
        for key, value in keywords.items()
        if not (key in unsaid and unsaid[key] == value)
    ]
    return f"{name}({', '.join(parts)})"


def _literal(value: object) -> str:
    if isinstance(value, float):
        return float.__repr__(value)  # numpy's float64 is a float, but prints as np.float64(0.2)
    if isinstance(value, str | int | None):
        return repr(value)
    if isinstance(value, tuple | list):
        inner = ", ".join(_literal(element) for element in value)
        return f"({inner},)" if len(value) == 1 else f"({inner})"
    return str(value)
