"""Candidate texts: grids, ranges, and what is refused."""

from __future__ import annotations

import pytest

from fedmerge.errors import RuleError
from fedmerge.study.candidates import DEFAULT_SPACE, Candidate, Range, expand, parse_template, parse_templates
from fedmerge.text import parse_call


def texts(*given: str) -> list[str]:
    return [str(candidate) for candidate in expand(given)]


def test_a_grid_is_the_product_of_its_lists():
    found = expand(["ties(density=[0.1, 0.2, 0.5], scale=[0.5, 1.0]) @ [factors(), product()]"])
    assert len(found) == 3 * 2 * 2 == len(set(found))
    assert found[0] == Candidate("ties(density=0.1, scale=0.5)", "factors()")
    assert found[1] == Candidate("ties(density=0.1, scale=0.5)", "product()")


def test_a_text_without_lists_is_one_candidate_however_it_is_written():
    assert texts("fedavg") == texts("fedavg()", "fedavg() @ product()") == [f"fedavg() @ {DEFAULT_SPACE}"]
    assert texts("ties(density=0.2) @ core") == texts("ties(density = .2, scale=1.0) @ core()")


def test_rules_and_stages_can_be_chosen_from_and_lists_stand_inside_of_rules():
    assert texts("[fedavg(), median] @ core()") == ["fedavg() @ core()", "median() @ core()"]
    nested = texts("knots(rule=[ties(density=[0.1, 0.2]), fedavg()])")
    assert nested == [
        "knots(rule=ties(density=0.1)) @ product()", "knots() @ product()", "knots(rule=fedavg()) @ product()",
    ]  # fmt: skip
    assert len(texts("chain(keep_largest(density=[0.1, 0.5]), elect_sign(), mean(), scale([1.0, 2.0]))")) == 4


def test_semicolons_part_candidates_as_in_shadows():
    assert texts("fedavg(); ties(density=0.2) @ core();") == texts("fedavg()", "ties() @ core()")


def test_a_tuple_is_a_value_only_in_brackets():
    template = parse_template("house(weights=[(1, 2), (2, 1)])")
    assert template.rule == parse_call("house(weights=((1, 2), (2, 1)))", "rule")
    variants = []
    with pytest.raises(RuleError, match="unknown rule 'house'"):
        variants += template.grid()
    assert not variants


@pytest.mark.parametrize(
    ("text", "sentence"),
    [
        ("tise(density=0.2)", "did you mean 'ties'"),
        ("ties(densty=[0.1, 0.2])", "Did you mean 'density'"),
        ("ties(density=[0.1, 2.0])", "density"),
        ("ties(density=[])", "empty list"),
        ("ties(density=0.2) @ prodct()", "did you mean 'product'"),
        ("ties(density=0.2) @ product() @ core()", "expected 'rule @ space'"),
        ("@ product()", "expected 'rule @ space'"),
        ("[ties(density=0.2), 3]", "expected one or more of name"),
        ("[]", "expected one or more of name"),
        ("[ties(]", "can't be read"),
        ("ties(density=between(0.9, 0.1))", "the smaller one first"),
        ("ties(density=between(0.1))", "expected two finite numbers"),
        ("ties(scale=log_between(0.0, 1.0))", "above 0"),
        ("ties(density=between(0.5, 1.5))", "density"),
        ("mean()", "single stage"),
    ],
)
def test_what_is_refused(text: str, sentence: str):
    with pytest.raises(RuleError, match=sentence):
        parse_templates([text])


def test_a_range_is_no_grid():
    with pytest.raises(RuleError, match=r"between\(0.1, 1.0\) is a range, which a search samples"):
        expand(["ties(density=between(0.1, 1.0))"])


class Highest:
    """A chooser that takes the last and the most, and remembers what it was asked."""

    def __init__(self) -> None:
        self.asked: list[str] = []

    def one_of(self, name, labels):
        self.asked.append(name)
        return len(labels) - 1

    def number(self, name, limits):
        self.asked.append(name)
        return limits.high


def test_a_search_decides_what_is_open_and_nothing_else():
    chooser = Highest()
    text = "ties(density=between(0.1, 0.9), scale=[0.5, 2.0], votes='mass') @ [core(), product(rank=between(4, 8))]"
    found = parse_template(text).chosen(chooser)
    assert found == Candidate("ties(density=0.9, scale=2.0)", "product(rank=8)")
    assert chooser.asked == ["rule.ties.density", "rule.ties.scale", "space", "space.product.rank"]


@pytest.mark.parametrize(
    ("text", "is_open"),
    [("ties()", False), ("ties(density=[0.1])", False), ("ties(density=[0.1, 0.2])", True),
     ("ties(density=between(0.1, 0.2))", True), ("ties() @ [core(), product()]", True)],
)  # fmt: skip
def test_what_is_open(text: str, is_open: bool):
    assert parse_template(text).is_open is is_open


def test_a_range_of_whole_numbers_is_whole():
    assert Range.of(parse_call("between(1, 4)", "range")).whole
    assert not Range.of(parse_call("between(1, 4.0)", "range")).whole
