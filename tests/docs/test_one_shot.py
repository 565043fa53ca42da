"""Every command of docs/one-shot.md runs, one after the other, on tiny silos."""

from __future__ import annotations

import re
import shlex
import shutil
from pathlib import Path

import pytest
from typer.testing import CliRunner

from fedmerge.adapters import Adapter, Lora
from fedmerge.cli.app import app
from fedmerge.config import read_config
from fedmerge.engine.local import run_local
from fedmerge.server.storage import to_toml
from fedmerge.silo.lora import initial_adapter
from fedmerge.wire.files import save_adapter

PAGE = (Path(__file__).parents[2] / "docs" / "one-shot.md").read_text(encoding="utf-8")
COMMANDS = [
    line.split("  #")[0].strip()
    for block in re.findall(r"```bash\n(.*?)```", PAGE, flags=re.DOTALL)
    for line in block.splitlines()
]


@pytest.fixture
def place(tiny_flat, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
    """A simulation, a recorded run of it, and adapters of two other starts."""
    flat = tiny_flat(run__rounds=1, run__record=True, run__baselines="", run__output="runs/notes")
    monkeypatch.chdir(tmp_path)
    run_local(read_config(flat))
    (tmp_path / "simulation.toml").write_text(to_toml(flat | {"run.output": ""}))
    for seed, place in enumerate(("inbox/site-a", "inbox/site-b", "site-c")):
        settings = read_config(flat | {"run.seed": 7 + seed, "lora.rank": 2 + seed, "lora.alpha": 4.0})
        start = initial_adapter(settings.silo)
        moved = {name: value + 0.01 for name, value in start.tensors.items()}
        save_adapter(Adapter(moved, Lora(2 + seed, 4.0)), place)
    return tmp_path


def test_the_page_is_read_right() -> None:
    assert len(COMMANDS) == 6
    assert {shlex.split(command)[1] for command in COMMANDS} == {"one-shot", "add", "remove"}


def test_all_commands_run(place: Path) -> None:
    for command in COMMANDS:
        words = ["rocks" if word == "harbour" else word for word in shlex.split(command)[1:]]
        result = CliRunner().invoke(app, words)
        assert result.exit_code == 0, f"{command}: {result.output}"
    folders = {path.name for path in (place / "runs").iterdir()}
    named = {"handed", "handed+site-c", "handed+site-c-site-a", "notes", "notes-rocks", "less-harbour"}
    assert named < folders
    assert len(folders - named) == 1  # the second one-shot chose a name of its own
    shutil.rmtree(place / "runs")
