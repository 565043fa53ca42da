"""Sources of candidates: a grid, and Optuna's samplers, which repeat themselves."""

from __future__ import annotations

import sys

import pytest

from fedmerge.errors import ConfigError, RuleError
from fedmerge.study.candidates import Candidate, expand, parse_templates
from fedmerge.study.search import SAMPLERS, Grid, Search, SearchSettings

ONE = ["ties(density=between(0.05, 1.0), scale=log_between(0.1, 5.0)) @ product()"]
TWO = [*ONE, "task_arithmetic(scale=[0.1, 0.2]) @ [core(), product(rank=between(4, 8))]"]


def score(candidate: Candidate) -> float | None:
    """A made-up landscape; some candidates fail."""
    number = sum(map(ord, str(candidate)))
    return None if number % 9 == 0 else -abs(number % 100 - 50) / 50


def asked(texts: list[str], sampler: str, trials: int, batch: int = 4) -> list[str]:
    search = Search(parse_templates(texts), SearchSettings(sampler, trials, seed=3))
    found: list[str] = []
    while candidates := search.ask(batch):
        for candidate in candidates:
            found.append(str(candidate))
            search.tell(candidate, score(candidate))
    return found


def test_a_grid_gives_each_candidate_once_in_its_order():
    candidates = expand(["ties(density=[0.1, 0.2, 0.5])", "ties(density=0.1)"])
    grid = Grid([*candidates, candidates[0]])
    assert grid.total == 3
    assert [*grid.ask(2), *grid.ask(2)] == list(candidates)
    assert grid.ask(2) == []


@pytest.mark.parametrize("sampler", ["tpe", "random", "cmaes", "qmc"])
@pytest.mark.parametrize("texts", [ONE, TWO], ids=["one", "two"])
def test_the_same_seed_asks_for_the_same_and_a_longer_search_goes_on(sampler: str, texts: list[str]):
    first = asked(texts, sampler, 14)
    assert len(first) == 14
    assert asked(texts, sampler, 20)[:12] == first[:12]


def test_gp_repeats_itself_too():
    assert asked(ONE, "gp", 13) == asked(ONE, "gp", 13)


def test_tpe_learns_what_it_is_told():
    def last(sampler: str) -> float:
        search = Search(parse_templates(ONE), SearchSettings(sampler, 40, higher_is_better=False))
        away = 0.0
        for number in range(40):
            (candidate,) = search.ask(1)
            scale = float(candidate.rule.partition("scale=")[2].rstrip(")") or 1.0)
            search.tell(candidate, abs(scale - 2.0))
            away += abs(scale - 2.0) if number >= 30 else 0.0
        return away

    assert last("tpe") < last("random") / 2


def test_what_is_asked_can_be_read_again():
    for text in asked(TWO, "random", 20):
        assert [str(candidate) for candidate in expand([text])] == [text]


def test_what_is_refused():
    with pytest.raises(ConfigError, match="did you mean 'cmaes'"):
        SearchSettings("cma")
    with pytest.raises(ConfigError, match="expected at least 1"):
        SearchSettings("tpe", trials=0)
    with pytest.raises(RuleError, match="nothing is open in it"):
        Search(parse_templates(["fedavg()"]), SearchSettings("tpe"))
    with pytest.raises(ValueError, match="was asked before"):
        search = Search(parse_templates(ONE), SearchSettings("random"))
        search.ask(1)
        search.tell(Candidate("fedavg()", "product()"), 1.0)


def test_without_optuna_it_says_what_to_install(monkeypatch: pytest.MonkeyPatch):
    monkeypatch.setitem(sys.modules, "optuna", None)
    with pytest.raises(ConfigError, match=r"pip install 'fedmerge\[search\]'"):
        Search(parse_templates(ONE), SearchSettings("tpe"))


def test_the_samplers_are_a_table():
    assert sorted(SAMPLERS) == ["cmaes", "gp", "qmc", "random", "tpe"]
