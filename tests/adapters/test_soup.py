"""The greedy soup: who gets in, what is refused, and that it never ends below the best candidate."""

from __future__ import annotations

import numpy as np
import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st

import fedmerge
from fedmerge.adapters.adapter import Adapter, Lora
from fedmerge.adapters.merge import merge
from fedmerge.adapters.soup import Trial, greedy_soup
from fedmerge.errors import AdapterMismatch, RuleError


def single(value: float) -> dict[str, torch.Tensor]:
    return {"x": torch.tensor([value, -value], dtype=torch.float64)}


def near(target: float):
    return lambda adapter: -abs(adapter.tensors["x"][0].item() - target)


def test_it_is_exported():
    assert fedmerge.greedy_soup is greedy_soup
    assert fedmerge.Soup.__name__ == "Soup"


def test_candidates_are_tried_from_the_best_on_and_kept_where_the_score_does_not_fall():
    candidates = {"low": single(0.0), "over": single(2.6), "high": single(4.25), "under": single(1.5)}
    soup = greedy_soup(candidates, near(2))
    assert soup.trials == (
        Trial("under", -0.5, -0.5, True),
        Trial("over", pytest.approx(-0.6), pytest.approx(-0.05), True),
        Trial("low", -2.0, pytest.approx(-(2 - 4.1 / 3)), False),
        Trial("high", -2.25, pytest.approx(-(8.35 / 3 - 2)), False),
    )
    assert soup.taken == ("under", "over")
    assert list(soup.scores) == ["under", "over", "low", "high"]
    assert soup.score == soup.trials[1].together
    assert soup.adapter.tensors["x"].tolist() == pytest.approx([2.05, -2.05])
    assert soup.report.silos == ("over", "under")


def test_a_later_candidate_may_join_after_an_earlier_one_was_refused():
    soup = greedy_soup([single(1.5), single(0.5), single(4.0)], near(2.5))
    assert [(trial.name, trial.taken) for trial in soup.trials] == [
        ("candidate 0", True),
        ("candidate 2", True),
        ("candidate 1", False),
    ]


def test_ties_are_taken_in_the_order_given_and_an_equal_score_joins():
    def flat(adapter):
        return 1

    soup = greedy_soup([single(3.0), single(1.0), single(2.0)], flat)
    assert soup.taken == ("candidate 0", "candidate 1", "candidate 2")
    assert soup.adapter.tensors["x"].tolist() == [2, -2]


@settings(max_examples=30, deadline=None)
@given(
    values=st.lists(st.integers(-8, 8), min_size=1, max_size=6),
    noise=st.integers(0, 1000),
    rule=st.sampled_from(["fedavg()", "task_arithmetic(scale=0.3)", "median()", "model_stock()"]),
)
def test_it_never_ends_below_the_best_candidate(values, noise, rule):
    def rugged(adapter):
        return np.sin(noise + 7 * adapter.tensors["x"][0].item())

    soup = greedy_soup([single(float(value)) for value in values], rugged, rule=rule)
    assert soup.score >= max(soup.scores.values())
    assert soup.score == rugged(soup.adapter)
    assert len(soup.trials) == len(values)


def test_a_single_candidate_is_returned_as_it_came():
    soup = greedy_soup({"only": single(3.0)}, near(0), rule="task_arithmetic(scale=0.3)")
    assert soup.adapter.tensors["x"].tolist() == [3, -3]
    assert (soup.taken, soup.report) == (("only",), None)


def test_rule_space_weights_and_what_was_received_go_into_the_merge(make):
    received, deltas = make(0), {f"silo-{seed}": make(seed, scale=0.1) for seed in range(1, 4)}
    seen = []

    def rising(adapter):
        seen.append(adapter)
        return len(seen)

    weights = [3.0, 1.0, 2.0]
    soup = greedy_soup(
        deltas,
        rising,
        weights=weights,
        received=received,
        rule="ties(density=0.5)",
        space="product()",
        seed=5,
    )
    assert soup.taken == ("silo-3", "silo-2", "silo-1")
    wanted = merge(
        list(deltas.values()),
        weights,
        names=list(deltas),
        received=received,
        rule="ties(density=0.5)",
        space="product()",
        seed=5,
    )
    assert all(torch.equal(soup.adapter.tensors[n], wanted.adapter.tensors[n]) for n in received.tensors)
    assert str(soup.report.rule) == "ties(density=0.5)"
    alone = received.tensors["head.weight"] + deltas["silo-1"].tensors["head.weight"]
    assert torch.equal(seen[0].tensors["head.weight"], alone)


def test_adapters_of_different_ranks_go_into_a_soup_of_products(make):
    candidates = [make(1, lora=Lora(2, 4)), make(2, lora=Lora(3, 6))]
    soup = greedy_soup(candidates, lambda adapter: float(adapter.lora.rank), space="product()")
    assert soup.taken == ("candidate 1", "candidate 0")
    assert soup.adapter.lora.rank == 3


def fails_on(value, outcome):
    def evaluate(adapter):
        if adapter.tensors["x"][0].item() == value:
            if isinstance(outcome, Exception):
                raise outcome
            return outcome
        return 0.0

    return evaluate


@pytest.mark.parametrize("outcome", [float("nan"), float("inf"), None, "good", torch.tensor([1.0, 2.0])])
def test_a_score_that_is_no_finite_number_is_refused_by_name(outcome):
    candidates = {"first": single(1.0), "second": single(2.0)}
    with pytest.raises(RuleError, match="for 'second' alone, expected a finite number"):
        greedy_soup(candidates, fails_on(2.0, outcome))
    with pytest.raises(RuleError, match="for 'second' merged with 'first', expected a finite number"):
        greedy_soup(candidates, fails_on(1.5, outcome))


def test_an_evaluation_that_raises_is_refused_by_name_and_the_cause_kept():
    cause = ZeroDivisionError("no rows")
    with pytest.raises(RuleError, match="failed on 'second' alone: ZeroDivisionError: no rows") as caught:
        greedy_soup({"first": single(1.0), "second": single(2.0)}, fails_on(2.0, cause))
    assert caught.value.__cause__ is cause


def never(adapter):
    raise AssertionError("evaluated before the candidates were checked")


@pytest.mark.parametrize(
    "candidates, knobs, error, message",
    [
        ([], {}, AdapterMismatch, "no candidate"),
        ({}, {}, AdapterMismatch, "no candidate"),
        (single(1.0), {}, AdapterMismatch, "a single one was given"),
        (Adapter(single(1.0)), {}, AdapterMismatch, "a single one was given"),
        ([single(1.0), {"y": torch.ones(2)}], {}, AdapterMismatch, "'y'"),
        ([single(1.0), single(2.0)], {"weights": [1.0, 0.0]}, RuleError, "weight of 'candidate 1' is 0"),
        ([single(1.0), single(2.0)], {"weights": [1.0]}, RuleError, "weights"),
        ([single(1.0), single(2.0)], {"rule": "fedavgg()"}, RuleError, "fedavg"),
        ([single(1.0), single(2.0)], {"space": "prodct()"}, RuleError, "product"),
        ([single(1.0), single(2.0)], {"rule": "krum()"}, RuleError, "2 were given"),
    ],
)
def test_what_can_not_be_a_soup_is_refused(candidates, knobs, error, message):
    with pytest.raises(error, match=message):
        greedy_soup(candidates, never, **knobs)


def test_evaluate_sees_scores_of_numpy_and_torch():
    for number in (np.float32(0.5), torch.tensor(0.5), 1):
        assert greedy_soup([single(1.0)], lambda adapter, number=number: number).score == float(number)
