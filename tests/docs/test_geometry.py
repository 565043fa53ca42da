"""Every command and every piece of Python in docs/geometry.md runs."""

from __future__ import annotations

import re
import shlex
from pathlib import Path

import pytest
import torch
from typer.testing import CliRunner

import fedmerge
from fedmerge.cli.app import app
from fedmerge.wire.tensorfile import write_tensors

PAGE = (Path(__file__).parents[2] / "docs" / "geometry.md").read_text(encoding="utf-8")
BLOCKS = re.findall(r"```(\w+)\n(.*?)```", PAGE, flags=re.DOTALL)
COMMANDS = [
    [line.split("  #")[0].strip() for line in text.splitlines()] for kind, text in BLOCKS if kind == "bash"
]
PYTHON = [text for kind, text in BLOCKS if kind == "python"]


def run(command: str) -> str:
    program, *arguments = shlex.split(command)
    assert program == "fedmerge"
    result = CliRunner().invoke(app, arguments)
    assert result.exit_code == 0, result.output
    return result.stdout


@pytest.fixture
def sites(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
    """Two adapters and their base, as the page assumes."""
    draw = torch.Generator().manual_seed(0)
    module = "layers.0.q_proj"
    for site in ("site-a", "site-b"):
        pair = {
            f"base_model.model.{module}.lora_A.weight": torch.randn(4, 8, generator=draw),
            f"base_model.model.{module}.lora_B.weight": torch.randn(8, 4, generator=draw),
        }
        fedmerge.save_adapter(fedmerge.Adapter(pair, fedmerge.Lora(rank=4, alpha=8.0)), tmp_path / site)
    weight = torch.randn(8, 8, generator=draw)
    for name in ("base", "tune-a", "tune-b"):
        moved = 0.0 if name == "base" else 0.1 * torch.randn(8, 8, generator=draw)
        (tmp_path / name).mkdir()
        write_tensors(tmp_path / name / "model.safetensors", {f"{module}.weight": weight + moved})
    monkeypatch.chdir(tmp_path)
    return tmp_path


def test_the_page_is_read_right() -> None:
    assert [len(block) for block in COMMANDS] == [4, 6]
    assert len(PYTHON) == 1


def test_adapters(sites: Path) -> None:
    for command in COMMANDS[0]:
        assert "cosines of the updates" in run(command)
    assert (sites / "geometry.json").is_file()


def test_python(sites: Path) -> None:
    exec(compile(PYTHON[0], "docs/geometry.md", "exec"), {})


@pytest.mark.slow
def test_a_run(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    run(f"fedmerge init {tmp_path / 'project'}")
    monkeypatch.chdir(tmp_path / "project")
    for command in COMMANDS[1]:
        assert run(command).strip()
    assert (tmp_path / "project" / "runs" / "notes" / "geometry.json").is_file()


def test_thresholds_are_those_of_the_code() -> None:
    from fedmerge.adapters import findings, findings_lines

    assert f"falls by {100 * findings_lines.LEAST_GAIN:g} %" in PAGE
    assert f"A barrier of {100 * findings_lines.BARRIER:g} %" in PAGE
    assert f"Cosines of {findings.OPPOSED:g} and below" in PAGE
    assert f"Below {100 * findings.LITTLE:g} % conflict" in PAGE
    assert findings.DOMINANT == 0.5
