import json

import pytest

from fedmerge.cli import doctor
from fedmerge.cli.checks import BROKEN, NOTE, OK, Check


@pytest.fixture
def machine(monkeypatch):
    """Replaces the checks of the machine, which tests/cli/test_checks.py tests."""

    def replace(*checks: Check) -> None:
        monkeypatch.setattr(doctor, "machine", lambda: iter(checks))

    replace(Check("python", OK, "3.11"), Check("hub", NOTE, "out of reach", "use the cache"))
    return replace


def test_all_is_well(fedmerge, machine, tmp_path, monkeypatch) -> None:
    monkeypatch.chdir(tmp_path)
    result = fedmerge("doctor")
    assert result.exit_code == 0, result.output
    for said in (
        "-> use the cache",
        "the built-in example",
        "fingerprint",
        "4 silos",
        "all that is needed works",
    ):
        assert said in result.stdout


def test_what_is_broken_fails(fedmerge, machine) -> None:
    machine(Check("torch", BROKEN, "not installed", "pip install torch"))
    result = fedmerge("doctor", "--json")
    assert result.exit_code == 1
    payload = json.loads(result.stdout)
    assert payload["ok"] is False
    assert payload["checks"][0] == {
        "name": "torch", "state": BROKEN, "found": "not installed", "advice": "pip install torch",
    }  # fmt: skip


@pytest.mark.parametrize(
    ("setting", "name"),
    [
        ("data.source=nowhere.jsonl", "data"),
        ("base.model=org/not-in-the-cache", "base"),
        ("train.device=cuda:63", "device"),
        ("train.stpes=3", "configuration"),
    ],
)
def test_a_configuration_that_can_not_run(fedmerge, machine, setting: str, name: str) -> None:
    result = fedmerge("doctor", "--set", setting, "--json")
    assert result.exit_code == 1
    broken = [check["name"] for check in json.loads(result.stdout)["checks"] if check["state"] == BROKEN]
    assert broken == [name]
