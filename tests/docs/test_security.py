"""Every command of docs/security.md runs, on folders of `fedmerge deploy init`; files it names exist."""

from __future__ import annotations

import json
import re
import shlex
from pathlib import Path

import pytest
from typer.testing import CliRunner

from fedmerge.cli.app import app
from tests.deployment.live import federation

PROJECT = Path(__file__).parent.parent.parent
TEXT = (PROJECT / "docs" / "security.md").read_text(encoding="utf-8")
COMMANDS = [
    line.partition(" #")[0].strip()
    for block in re.findall(r"```bash\n(.*?)```", TEXT, flags=re.DOTALL)
    for line in block.splitlines()
]


@pytest.mark.parametrize("command", COMMANDS)
def test_command(command: str, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    with federation(tmp_path, ("hospital-a",), start=False):
        (tmp_path / "out").rename(tmp_path / "OUT")
        monkeypatch.chdir(tmp_path)
        result = CliRunner().invoke(app, [*shlex.split(command)[1:], "--json"])
    findings = json.loads(result.stdout)["findings"]
    assert len(findings) > 20
    # Whoever else runs Flower on this machine may do so as root.
    opened = [
        each for each in findings if each["state"] == "open" and not each["door"].startswith("user of fl")
    ]
    assert opened == []


def test_the_files_that_it_names_are_there() -> None:
    named = [*re.findall(r"`(tests/[\w/]+\.py)`", TEXT), "SECURITY.md"]
    assert len(named) == 4
    assert all((PROJECT / name).is_file() for name in named)
