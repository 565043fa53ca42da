"""Every `fedmerge sweep` of docs/sweep.md runs, on a small run; what it says of the default set is so."""

from __future__ import annotations

import re
import shlex
from pathlib import Path

import pytest
from typer.testing import CliRunner

from fedmerge.cli.app import app
from fedmerge.rules import RULES
from fedmerge.study.defaults import Situation, default_candidates

TEXT = (Path(__file__).parent.parent.parent / "docs" / "sweep.md").read_text(encoding="utf-8")
COMMANDS = [
    line for block in re.findall(r"```bash\n(.*?)```", TEXT, flags=re.DOTALL) for line in block.splitlines()
]
SWEEPS = [command for command in COMMANDS if command.startswith("fedmerge sweep")]


@pytest.fixture
def place(recorded: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
    """A folder with a recorded run, its deltas as adapters, and its simulation."""
    from fedmerge import save_adapter
    from fedmerge.study.recorded import open_run

    for name, delta in zip(
        ("site-a", "site-b", "site-c"), open_run(recorded).round(1).deltas.values(), strict=True
    ):
        save_adapter(delta, tmp_path / name)
    (tmp_path / "simulation.toml").write_text((recorded / "config.toml").read_text())
    (tmp_path / "runs").mkdir()
    recorded.rename(tmp_path / "runs" / "kept")
    monkeypatch.chdir(tmp_path)
    return tmp_path


def run(command: str) -> str:
    found = CliRunner().invoke(app, shlex.split(command)[1:])
    assert found.exit_code == 0, found.output
    return found.stdout


def test_the_page_is_read_right() -> None:
    assert len(SWEEPS) == 5
    (simulate,) = set(COMMANDS) - set(SWEEPS)  # which tests/test_main_job.py runs
    assert simulate.startswith("fedmerge simulate --set run.record=true")


@pytest.mark.parametrize("command", [command for command in SWEEPS if "--candidates" in command])
def test_command(command: str, place: Path) -> None:
    assert "best:" in run(command)


@pytest.mark.parametrize("command", [command for command in SWEEPS if "--candidates" not in command])
def test_command_with_the_default_candidates(command: str, place: Path) -> None:
    assert "the time limit" in run(command + " --limit-seconds 1")


def test_every_rule_named_of_the_default_set_is_in_it() -> None:
    section = TEXT.partition("## What is tried")[2].partition("Or say it.")[0]
    named = {name for name in re.findall(r"`(\w+)`", section) if name in RULES}
    statistics = frozenset({"fisher", "gram"})
    tried = {
        candidate.rule.partition("(")[0]
        for silos in (2, 5)
        for candidate in default_candidates(Situation(silos, 16, 1000, statistics=statistics))
    }
    assert named
    assert named <= tried
