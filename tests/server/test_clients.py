"""A rule that can't merge so many replies says so before anybody trains."""

from __future__ import annotations

import tomllib
from dataclasses import dataclass
from pathlib import Path

import pytest

from fedmerge.adapters import Lora
from fedmerge.errors import RoundFailed, RuleError
from fedmerge.rules import Chain, Draw, Mean, Stack

from . import world
from .test_statistics import measuring
from .world import node_of, run

STRATEGIES = Path(__file__).parents[2] / "strategies"


@dataclass(frozen=True)
class Crowd(Mean):
    """The mean of at least so many."""

    least: int = 3

    def __call__(self, stack: Stack, draw: Draw) -> Stack:
        if stack.clients < self.least:
            raise RuleError(f"a crowd is {self.least} clients, {stack.clients} were given")
        return super().__call__(stack, draw)


def crowd(least: int) -> Chain:
    return Chain((Crowd(least),), "crowd()")


def counting(trained: list[str]):
    def node(message):
        trained.append(message.metadata.message_type)
        return node_of()(message)

    return node


@pytest.mark.parametrize(
    ("least", "quorum", "match"),
    [
        (4, 1.0, r"crowd\(\) can't merge 3 replies: a crowd is 4 clients, 3 were given"),
        (3, 0.5, r"crowd\(\) can't merge 2 replies: .*asks 3 silos, and its quorum is 2; nothing was"),
    ],
)
def test_too_few_are_refused_before_anybody_trains(least, quorum, match):
    trained = []
    with pytest.raises(RoundFailed, match=match):
        run(counting(trained), rule=crowd(least), quorum=quorum)
    assert not trained


def test_enough_are_merged():
    strategy, _ = run(node_of(), rule=crowd(3), quorum=1.0)
    assert [reply.silo for reply in strategy.last_replies] == ["a", "b", "c"]


def test_krum_says_before_a_round_that_it_wants_more_silos():
    trained = []
    with pytest.raises(RoundFailed, match=r"krum\(.*\) can't merge 3 replies"):
        run(counting(trained), rule="krum(attackers=1)", quorum=1.0)
    assert not trained


@pytest.mark.parametrize("recipe", sorted(path.name for path in STRATEGIES.glob("*.toml")))
def test_every_strategy_closes_a_round(recipe, monkeypatch):
    """Of seven silos, or of two where the rule is one for two."""
    strategy = tomllib.loads((STRATEGIES / recipe).read_text())["strategy"]
    monkeypatch.setattr(world, "EXAMPLES", {name: 10 + ord(name) for name in "abcdefg"})

    def of(names: str):
        closed, _ = run(measuring(), names=tuple(names), lora=Lora(2, 4.0), quorum=1.0, **strategy)
        return [reply.silo for reply in closed.last_replies]

    try:
        assert of("abcdefg") == list("abcdefg")
    except RoundFailed as refusal:
        assert "can't merge 7 replies" in str(refusal)
        assert of("ab") == ["a", "b"]
