from __future__ import annotations

import inspect
import re
import tomllib
from pathlib import Path

import pytest

from fedmerge.errors import RuleError
from fedmerge.rules import RULES, STAGES, parse_rule, task_arithmetic, ties

STRATEGIES = sorted((Path(__file__).parents[2] / "strategies").glob("*.toml"))


@pytest.mark.parametrize(
    ("text", "written"),
    [
        ("fedavg", "fedavg()"),
        ("ties(density=0.2, scale=1.0)", "ties(density=0.2)"),
        ("ties()", "ties(density=0.2)"),
        ("ties(0.3, scale=0.5)", "ties(density=0.3, scale=0.5)"),
        ("ties(density=0.2, scope='adapter', like=None)", "ties(density=0.2, scope='adapter')"),
        ('ties(density=0.2, like="peft")', "ties(density=0.2, like='peft')"),
        ("task_arithmetic()", "task_arithmetic(scale=1.0)"),
        ("trimmed_mean", "trimmed_mean(trim=0.1)"),
        ("median()", "median()"),
        ("chain(equal_weights, total, scale(-0.5))", "chain(equal_weights(), total(), scale(factor=-0.5))"),
    ],
)
def test_text(text: str, written: str) -> None:
    assert str(parse_rule(text)) == written
    assert parse_rule(written) == parse_rule(text)


@pytest.mark.parametrize(
    ("text", "sentence"),
    [
        ("tise()", "unknown rule 'tise': did you mean 'ties'"),
        ("ties(densty=0.2)", "no knob 'densty'. Did you mean 'density'"),
        ("ties(density=20)", "density=20 is out of range"),
        ("ties(density=0)", "density=0 is out of range"),
        ("dare(density='x')", "density='x' is no number"),
        ("ties(scale=1e999)", "scale: factor=inf is out of range"),
        ("ties(scale='x')", "scale: factor='x' is no number"),
        ("ties(scope='model')", "scope='model' is not known"),
        ("ties(like='pfet')", "ties: like='pfet' is not known; it is one of 'peft', 'mergekit', 'paper'"),
        ("ties(like='')", "ties: like='' is not known"),
        ("median(like='peft')", "no knob 'like'. It has none"),
        ("mean()", "is a single stage"),
        ("chain()", "exactly one stage combines"),
        ("chain(1)", "1 is no stage"),
        ("chain(keep_largest(), mean())", "keep_largest.* missing a required argument: 'density'"),
    ],
)
def test_refuses(text: str, sentence: str) -> None:
    with pytest.raises(RuleError, match=sentence):
        parse_rule(text)


def test_scope() -> None:
    assert ties().scope == "tensor"
    assert ties(scope="adapter").scope == "adapter"
    assert ties(like="paper").scope == "adapter"
    assert ties(like="paper", scope="tensor").scope == "tensor"
    assert task_arithmetic().separable
    assert not ties().separable


@pytest.mark.parametrize("name", STAGES)
def test_stages_are_listed_under_the_name_that_they_print(name: str) -> None:
    needed = {"density": 0.5, "factor": 2, "weighted": True, "divisor": "one", "silos": "a"}
    knobs = inspect.signature(STAGES[name]).parameters
    stage = STAGES[name](**{knob: value for knob, value in needed.items() if knob in knobs})
    assert str(stage).startswith(f"{name}(")


@pytest.mark.parametrize("function", RULES.values(), ids=RULES)
def test_docstrings_say_what_a_user_needs(function: object) -> None:
    text = function.__doc__ or ""
    assert ">>>" in text
    # Older methods have a place and a year.
    cited = re.search(r"Reference:\n.*(arXiv:\d{4}\.\d{5}|\b(19|20)\d\d\b)", text, re.DOTALL)
    assert function.__name__ == "chain" or cited  # type: ignore[attr-defined]


@pytest.mark.parametrize("path", STRATEGIES, ids=lambda path: path.stem)
def test_strategy_files(path: Path) -> None:
    text = path.read_text(encoding="utf-8")
    table = tomllib.loads(text)
    assert set(table) == {"strategy"}
    assert {"rule", "space"} == set(table["strategy"])
    rule = parse_rule(table["strategy"]["rule"])
    assert parse_rule(str(rule)) == rule
    comments = [line for line in text.splitlines() if line.startswith("#")]
    assert text.startswith("#")
    assert any(line.startswith(("# Paper: ", "# Papers: ")) for line in comments)
    assert re.search(r"arXiv|\b(19|20)\d\d\b", "".join(comments))
    assert any(line.startswith("# Measured:") for line in comments)
    assert any(line.startswith("# When:") for line in comments)


def test_every_rule_has_a_strategy_file() -> None:
    named = {
        tomllib.loads(path.read_text(encoding="utf-8"))["strategy"]["rule"].partition("(")[0]
        for path in STRATEGIES
    }
    assert named == set(RULES) - {"chain"}
