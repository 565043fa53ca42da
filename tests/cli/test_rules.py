import json

import pytest

from fedmerge.cli.rules import describe
from fedmerge.rules import RULES


def test_the_catalogue_names_every_rule(fedmerge) -> None:
    result = fedmerge("rules")
    assert result.exit_code == 0
    for name in RULES:
        assert name in result.stdout


def test_json_has_signature_summary_and_reference(fedmerge) -> None:
    entries = {entry["name"]: entry for entry in json.loads(fedmerge("rules", "--json").stdout)["rules"]}
    assert set(entries) == set(RULES)
    assert entries["ties"]["signature"].startswith("ties(density=")
    assert "2306.01708" in entries["ties"]["reference"]
    assert all(entry["summary"].endswith(".") for entry in entries.values())


@pytest.mark.parametrize("given", ["ties", "ties(density=0.1)"])
def test_one_rule_is_explained(fedmerge, given: str) -> None:
    result = fedmerge("rules", given)
    assert result.exit_code == 0
    assert "density: rho" in result.stdout


def test_an_unknown_rule_names_the_nearest(fedmerge) -> None:
    result = fedmerge("rules", "tise")
    assert result.exit_code == 1
    assert "did you mean 'ties'" in result.stderr


def test_a_rule_without_a_docstring_is_still_listed() -> None:
    entry = describe("bare", lambda scale: None)
    assert entry == {"name": "bare", "signature": "bare(scale)", "summary": "", "reference": ""}
