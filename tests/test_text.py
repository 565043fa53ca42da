from __future__ import annotations

import dataclasses

import pytest
from hypothesis import given
from hypothesis import strategies as st

from fedmerge.errors import ConfigError, RuleError
from fedmerge.text import Call, Value, build, parse_call, render

names = st.from_regex(r"[a-z][a-z_]{0,8}", fullmatch=True).filter(
    lambda name: (
        name
        not in {
            "as",
            "if",
            "in",
            "is",
            "or",
            "and",
            "not",
            "def",
            "for",
            "del",
            "try",
            "from",
            "else",
            "elif",
            "pass",
            "with",
            "while",
            "class",
            "break",
            "yield",
            "raise",
            "await",
            "async",
            "lambda",
            "global",
            "import",
            "return",
            "assert",
            "except",
            "finally",
            "continue",
        }
    )
)
literals = (
    st.none()
    | st.booleans()
    | st.integers()
    | st.floats(allow_nan=False, allow_infinity=False)
    | st.text(max_size=9)
)


def _calls(values: st.SearchStrategy[Value]) -> st.SearchStrategy[Call]:
    keywords = st.dictionaries(names, values, max_size=3).map(lambda found: tuple(found.items()))
    return st.builds(Call, names, st.lists(values, max_size=3).map(tuple), keywords)


calls = _calls(
    st.recursive(literals, lambda inner: st.lists(inner, max_size=3).map(tuple) | _calls(inner), max_leaves=6)
)


def as_text(value: object) -> object:
    """A value as `render` takes it: a nested call by its text."""
    if isinstance(value, Call):
        return _Spelt(write(value))
    return tuple(as_text(element) for element in value) if isinstance(value, tuple) else value


def write(call: Call) -> str:
    keywords = {key: as_text(value) for key, value in call.keywords}
    return render(call.name, keywords, arguments=[as_text(value) for value in call.arguments])


@dataclasses.dataclass
class _Spelt:
    text: str

    def __str__(self) -> str:
        return self.text


@given(calls)
def test_what_is_written_is_read_back(call: Call) -> None:
    assert parse_call(write(call), "rule") == call


@pytest.mark.parametrize(
    ("text", "call"),
    [
        ("fedavg", Call("fedavg")),
        ("  fedavg( ) \n", Call("fedavg")),
        ("dirichlet(alpha=-0.5)", Call("dirichlet", (), (("alpha", -0.5),))),
        ("f(+1, [1, 2], None, True, 'x', ())", Call("f", (1, (1, 2), None, True, "x", ()))),
        ("chain(elect_sign, mean())", Call("chain", (Call("elect_sign"), Call("mean")))),
        ("f(inner=g(x=1))", Call("f", (), (("inner", Call("g", (), (("x", 1),))),))),
    ],
)
def test_reads(text: str, call: Call) -> None:
    assert parse_call(text, "rule") == call


@pytest.mark.parametrize(
    ("text", "sentence"),
    [
        ("", "can't be read"),
        ("ties(", "can't be read"),
        ("ties(density=0.2, 3)", "can't be read"),
        ("a\0b", "can't be read"),
        ("f('\\d')", "can't be read"),
        ("f(" * 5000, "can't be read"),
        ("f(" * 1500 + ")" * 1500, "can't be read"),
        ("-" * 5000 + "1", "can't be read"),
        ("f(" + "+".join("1" * 4000) + ")", "can't be read"),
        ("x" * 10_001, "has 10001 characters"),
        ("__import__('os').system('x')", "expected name"),
        ("a.b()", "expected name"),
        ("1", "expected name"),
        ("f(x=1+1)", "no literal"),
        ("f(x=[i for i in y])", "no literal"),
        ("f(1j)", "no literal"),
        ("f(b'x')", "no literal"),
        ("f(...)", "no literal"),
        ("f(*a)", "no literal"),
        ("f(-True)", "is no number"),
        ("f(-'x')", "is no number"),
        ("f(not 1)", "no literal"),
        ("f(**{'a': 1})", r"'\*\*' can't be used"),
        ("f(a=1, a=2)", "'a' is given twice"),
        ("ties(like=peft)", "write like='peft' for a string"),
    ],
)
def test_refuses(text: str, sentence: str) -> None:
    with pytest.raises(RuleError, match=sentence):
        parse_call(text, "rule")


def test_refuses_what_is_no_text() -> None:
    with pytest.raises(RuleError, match=r"a space is written as text .* got int"):
        parse_call(3, "space")  # type: ignore[arg-type]


def plain(size: int = 1, *, name: str = "") -> tuple[int, str]:
    if not isinstance(size, int):
        raise TypeError("size is an int")
    return size, name


def several(*parts: object) -> tuple[object, ...]:
    return parts


def anything(**knobs: object) -> dict[str, object]:
    return knobs


TABLE = {"plain": plain, "several": several, "anything": anything}


@pytest.mark.parametrize(
    ("text", "made"),
    [
        ("plain", (1, "")),
        ("plain(2, name='x')", (2, "x")),
        ("several(plain, (plain(3), 4))", ((1, ""), ((3, ""), 4))),
        ("anything(inner=plain(4))", {"inner": (4, "")}),
    ],
)
def test_builds(text: str, made: object) -> None:
    assert build(parse_call(text, "part"), TABLE, "part") == made


@pytest.mark.parametrize(
    ("text", "sentence"),
    [
        ("plane()", "unknown part 'plane': did you mean 'plain'"),
        ("several(plane())", "unknown part 'plane'"),
        ("plain(sise=1)", r"plain\(\) has no knob 'sise'. Did you mean 'size'\? There are: name, size"),
        ("several(x=1)", "has no knob 'x'. It has none"),
        ("plain(1, 2)", "too many positional arguments"),
        ("plain(1, size=2)", "multiple values"),
        ("plain(size='x')", "size is an int"),
    ],
)
def test_refuses_to_build(text: str, sentence: str) -> None:
    with pytest.raises(ConfigError, match=sentence):
        build(parse_call(text, "part"), TABLE, "part", ConfigError)


def test_render_leaves_defaults_out() -> None:
    assert render("f", {"a": 1, "b": None}, {"a": 1, "b": 2}) == "f(b=None)"
    assert render("f", {}) == "f()"


def test_numpy_numbers_are_written_as_python_writes_them() -> None:
    numpy = pytest.importorskip("numpy")
    assert render("f", {"a": numpy.float64(0.2), "b": (True, ("x",))}) == "f(a=0.2, b=(True, ('x',)))"
