"""A rule by tensor name and over depth, and rules of other packages by entry point."""

from __future__ import annotations

import pickle
from collections.abc import Callable
from importlib.metadata import EntryPoint, EntryPoints

import pytest
import torch

from fedmerge.adapters.merge import merge
from fedmerge.errors import RuleError
from fedmerge.rules import (
    ByName,
    Draw,
    Rule,
    Stack,
    by_depth,
    by_name,
    fedavg,
    median,
    over_depth,
    parse_rule,
    resolve,
    ties,
)
from fedmerge.rules import entry_points as module

A, B = "layers.{}.q_proj.lora_A.weight", "layers.{}.q_proj.lora_B.weight"


def adapter(seed: int) -> dict[str, torch.Tensor]:
    generator = torch.Generator().manual_seed(seed)
    shapes = {
        A.format(0): (2, 6),
        B.format(0): (5, 2),
        A.format(1): (2, 6),
        B.format(1): (5, 2),
        "head": (7,),
    }
    return {name: torch.randn(shape, generator=generator) for name, shape in shapes.items()}


DELTAS = [adapter(seed) for seed in range(3)]


def test_the_first_pattern_that_matches_decides() -> None:
    rule = by_name({"*.lora_A.*": "median()", "layers.0.*": ties(density=0.5)}, default="fedavg()")
    assert rule.at(A.format(0)) == median()
    assert rule.at(B.format(0)) == ties(density=0.5)
    assert rule.at("head") == fedavg()
    assert resolve(rule, "head") == resolve(fedavg(), "head")
    assert isinstance(rule, Rule)


def test_patterns_tell_capital_letters_apart() -> None:
    assert by_name({"*.lora_a.*": "median()"}, default="fedavg()").at(A.format(0)) == fedavg()


def test_a_choice_inside_a_choice_is_followed() -> None:
    inner = over_depth(lambda d: ties(density=d), first=0.2, last=0.8, layers=2, other="fedavg()")
    rule = by_name({"*.lora_B.*": inner, "head": by_name({"h*": "median()"})}, default="fedavg()")
    assert rule.at(B.format(1)) == ties(density=0.8)
    assert rule.at("head") == median()


@pytest.mark.parametrize(
    ("name", "layer"),
    [
        ("model.layers.7.mlp.up_proj.weight", 7),
        ("bert.encoder.layer.2.attention.self.query", 2),
        ("transformer.h.11.attn.c_attn", 11),
        ("h.0", 0),
        ("model.layers.3.experts.5.w1", 3),
        ("players.4.x", None),
        ("layers.x.y", None),
        ("head.weight", None),
    ],
)
def test_layers_are_read_from_names(name: str, layer: int | None) -> None:
    rule = by_depth(lambda index: ties(density=(index + 1) / 12), layers=12, other="fedavg()")
    assert rule.at(name) == (fedavg() if layer is None else ties(density=(layer + 1) / 12))


def test_a_knob_changes_evenly_and_ends_exactly() -> None:
    rule = over_depth(lambda d: ties(density=d), first=0.1, last=0.7, layers=7, other="fedavg()")
    assert rule.at("layers.0.x") == ties(density=0.1)
    assert rule.at("layers.6.x") == ties(density=0.7)
    assert rule.at("layers.3.x").stages[0].density == pytest.approx(0.4)  # type: ignore[attr-defined]
    single = over_depth(lambda d: ties(density=d), first=0.1, last=0.7, layers=1, other="fedavg()")
    assert single.at("layers.0.x") == ties(density=0.1)


@pytest.mark.parametrize(
    ("make", "sentence"),
    [
        (lambda: by_name({}), "expected a mapping of at least one pattern"),
        (lambda: by_name("fedavg()"), "expected a mapping"),
        (lambda: by_name({1: fedavg()}), "1 is no string"),
        (lambda: by_name({"x": 3}), "3 is no rule"),
        (lambda: by_name({"x": "tise()"}), "did you mean 'ties'"),
        (lambda: by_name({"x": fedavg()}).at("y"), "no rule for 'y'; it matches none of 'x'"),
        (lambda: by_depth(lambda i: fedavg(), layers=0, other=fedavg()), "layers=0 is out of range"),
        (lambda: by_depth(lambda i: fedavg(), layers=2.0, other=fedavg()), "layers=2.0 is out of range"),
        (lambda: by_depth(lambda i: None, layers=2, other=fedavg()), "None is no rule"),
        (
            lambda: by_depth(lambda i: fedavg(), layers=2, other=fedavg()).at("h.2.x"),
            "lies in layer 2, there are rules for 2",
        ),
        (
            lambda: over_depth(lambda d: ties(density=d), first=0.5, last=0, layers=3, other=fedavg()),
            "density=0.0 is out of range",
        ),
    ],
)
def test_refuses(make: Callable[[], object], sentence: str) -> None:
    with pytest.raises(RuleError, match=sentence):
        make()


def test_they_are_values() -> None:
    def make() -> ByName:
        deep = over_depth(lambda d: ties(density=d), first=0.1, last=0.7, layers=3, other="fedavg()")
        return by_name({"*.lora_A.*": "median()", "*": deep})

    assert make() == make()
    assert hash(make()) == hash(make())
    assert pickle.loads(pickle.dumps(make())) == make()
    assert str(make()) == (
        "by_name({'*.lora_A.*': median(), "
        "'*': by_depth(ties(density=0.1) to ties(density=0.7) over 3 layers, other=fedavg())}, default=None)"
    )
    assert make().kind == "by_name"
    assert make().linear(torch.ones(2)) is None
    assert make().needs == frozenset()


def test_called_on_a_stack_it_goes_by_the_name_of_the_draw() -> None:
    stack = Stack(torch.tensor([[1.0], [2.0], [9.0]]), torch.ones(3, 1, dtype=torch.float64))
    rule = by_name({"x": "median()"}, default="fedavg()")
    assert rule(stack, Draw(0, 0, ("a", "b", "c"), "x", (1,))) == 2
    assert rule(stack, Draw(0, 0, ("a", "b", "c"), "y", (1,))) == 4


def test_merge_applies_each_rule_to_its_tensors() -> None:
    rule = by_name({"*.lora_A.*": "median()", "head": "ties(density=0.4)"}, default="fedavg()")
    merged = merge(DELTAS, [1, 2, 3], rule=rule)
    assert list(merged.adapter.tensors) == sorted(DELTAS[0])
    assert merged.delta is not None and list(merged.delta.tensors) == sorted(DELTAS[0])
    assert merged.report.rule == str(rule)
    for name in DELTAS[0]:
        alone = merge([{name: delta[name]} for delta in DELTAS], [1, 2, 3], rule=rule.at(name))
        assert torch.equal(merged.adapter.tensors[name], alone.adapter.tensors[name])


def test_an_adapter_wide_rule_sees_what_falls_to_it_as_one_row() -> None:
    wide = ties(density=0.3, scope="adapter")
    rule = by_name({"*.lora_A.*": wide, "head": wide}, default="fedavg()")
    merged = merge(DELTAS, rule=rule).adapter.tensors
    names = [A.format(0), A.format(1), "head"]
    apart = merge([{name: delta[name] for name in names} for delta in DELTAS], rule=wide).adapter.tensors
    assert all(torch.equal(merged[name], apart[name]) for name in names)
    mean = merge(DELTAS, rule="fedavg()").adapter.tensors
    assert torch.equal(merged[B.format(1)], mean[B.format(1)])


def test_a_name_that_no_rule_covers_ends_the_merge_by_name() -> None:
    with pytest.raises(RuleError, match="no rule for 'head'"):
        merge(DELTAS, rule=by_name({"layers.*": "fedavg()"}))


def house(density: float = 0.5) -> ByName:
    return by_name({"*.lora_A.*": "fedavg()"}, default=ties(density=density))


HOUSE = house()


def broken() -> Rule:
    raise KeyError("no such layer")


def nothing() -> None:
    return None


NUMBER = 3


@pytest.fixture(autouse=True)
def offers(monkeypatch: pytest.MonkeyPatch) -> None:
    """Entry points as an installed package would declare them."""
    here = {
        "house": "house",
        "house_object": "HOUSE",
        "broken": "broken",
        "nothing": "nothing",
        "number": "NUMBER",
    }
    points = [EntryPoint(name, f"{__name__}:{value}", module.GROUP) for name, value in here.items()]
    points += [
        EntryPoint("gone", "no_such_package_anywhere:rule", module.GROUP),
        EntryPoint("ties", f"{__name__}:broken", module.GROUP),
        EntryPoint("twice", f"{__name__}:house", module.GROUP),
        EntryPoint("twice", f"{__name__}:broken", module.GROUP),
    ]
    monkeypatch.setattr(module, "entry_points", lambda group: EntryPoints(points).select(group=group))


def test_text_reaches_entry_points() -> None:
    assert parse_rule("house()") == HOUSE
    assert parse_rule("house(density=0.25)") == house(0.25)
    assert parse_rule("house_object") == HOUSE
    assert merge(DELTAS, rule="house(density=0.25)").report.rule == str(house(0.25))


def test_the_catalogue_is_not_taken_over() -> None:
    assert parse_rule("ties(density=0.2)") == ties(density=0.2)


@pytest.mark.parametrize(
    ("text", "sentence"),
    [
        ("hause()", "unknown rule 'hause': did you mean 'house'"),
        ("house(densty=1)", "has no knob 'densty'. Did you mean 'density'"),
        ("house(density=20)", "density=20 is out of range"),
        ("house(density=(0.1, 0.2))", r"density=\(0.1, 0.2\) is no number"),
        ("ties(density=broken())", "broken' failed: KeyError"),
        ("gone()", "entry point 'no_such_package_anywhere:rule' can't be loaded: ModuleNotFoundError"),
        ("broken()", "broken' failed: KeyError: 'no such layer'"),
        ("nothing()", "nothing' returned None, expected a rule"),
        ("number()", "is 3, expected a function that returns a rule"),
        ("twice()", "offered more than once"),
        ("chain(house(), mean())", "is no stage"),
    ],
)
def test_what_is_wrong_with_an_entry_point_is_said(text: str, sentence: str) -> None:
    with pytest.raises(RuleError, match=sentence):
        parse_rule(text)
