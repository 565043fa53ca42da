import json

import pytest

from fedmerge.cli.rules import payload, recipe_of
from fedmerge.rules import RULES
from fedmerge.rules.facts import KINDS, facts_of


@pytest.mark.parametrize("width", [80, 120])
def test_the_catalogue_names_every_rule_and_fits(fedmerge, monkeypatch, width: int) -> None:
    monkeypatch.setenv("COLUMNS", str(width))
    result = fedmerge("rules")
    assert result.exit_code == 0
    lines = result.stdout.splitlines()
    assert max(map(len, lines[:-1])) <= width
    for name in RULES:
        assert any(line.split()[:1] == [name] for line in lines)
    assert "…" not in result.stdout


def test_rules_stand_under_their_kind(fedmerge) -> None:
    lines = fedmerge("rules").stdout.splitlines()
    at = {line.split()[0]: index for index, line in reversed(list(enumerate(lines))) if line.split()}
    for name, make in RULES.items():
        kind = facts_of(name, make).kind
        above = max((at[other], other) for other in KINDS if other in at and at[other] < at[name])
        assert above[1] == kind


def test_json_has_all_facts(fedmerge) -> None:
    entries = {entry["name"]: entry for entry in json.loads(fedmerge("rules", "--json").stdout)["rules"]}
    assert set(entries) == set(RULES)
    assert entries["ties"]["signature"].startswith("ties(density=")
    assert entries["ties"]["papers"] == ["2306.01708"]
    assert entries["ties"]["strategy"] == "strategies/ties.toml"
    assert entries["chain"]["strategy"] is None
    assert entries["fisher"]["needs"] == ["fisher"]
    assert all(entry["summary"].endswith(".") for entry in entries.values())


@pytest.mark.parametrize("given", ["ties", "ties(density=0.1)"])
def test_one_rule_is_explained(fedmerge, given: str) -> None:
    result = fedmerge("rules", given)
    assert result.exit_code == 0
    for part in ("density: rho", "elementwise", "strategies/ties.toml", "peft, mergekit, paper"):
        assert part in result.stdout


@pytest.mark.parametrize("name", RULES)
def test_each_page_can_be_shown(fedmerge, name: str) -> None:
    assert fedmerge("rules", name).exit_code == 0


def test_an_unknown_rule_names_the_nearest(fedmerge) -> None:
    result = fedmerge("rules", "tise")
    assert result.exit_code == 1
    assert "did you mean 'ties'" in result.stderr


def test_a_rule_without_a_docstring_is_still_listed() -> None:
    entry = payload(facts_of("bare", lambda scale: None))
    assert (entry["signature"], entry["summary"], entry["strategy"]) == ("bare(scale)", "", None)


def test_most_rules_have_a_recipe() -> None:
    assert [name for name in RULES if recipe_of(name) is None] == ["chain"]
