"""Every command and every piece of Python in the README runs."""

from __future__ import annotations

import os
import re
import shlex
import shutil
import subprocess
import sys
from pathlib import Path

import pytest

PROJECT = Path(__file__).parent.parent
README = (PROJECT / "README.md").read_text(encoding="utf-8")
BLOCKS = re.findall(r"```(\w+)\n(.*?)```", README, flags=re.DOTALL)
COMMANDS = [
    line.split("  #")[0].strip()
    for kind, text in BLOCKS
    if kind == "bash"
    for line in text.splitlines()
    if line.strip()
]
PYTHON = [text for kind, text in BLOCKS if kind == "python"]

# The gate itself runs `make test`; `make demo` is `fedmerge simulate` in the environment that make builds.
RUN_BY_THE_GATE = {"make test", "make demo", ". .venv/bin/activate"}
SLOW = {"fedmerge simulate", "fedmerge simulate --strategy ties --set train.steps=40"}
FLOWER = {"flwr run . --stream", "flwr run . --run-config strategies/ties.toml --stream"}  # tests/engine
STUDY = [  # in this order, each on what the one before left
    "fedmerge compare builtin ties dare_ties task_arithmetic --seeds 0,1,2 --tune scale",
    "fedmerge simulate --set run.record=true --set run.output=run",
    "fedmerge sweep run",
    "fedmerge inspect run",
    "fedmerge remove run xml",
    "fedmerge report run",
]
SMALL = "--set train.steps=2 --set data.max-rows=8 --set data.silos=xml,asyncio --set data.test=0.01"
QUICK = [c for c in COMMANDS if c not in RUN_BY_THE_GATE | SLOW | FLOWER | set(STUDY)]


@pytest.fixture
def folder(tmp_path: Path) -> Path:
    """A place with the recipes, two adapters, a base and two fine-tunes, as the README assumes."""
    import torch

    from fedmerge import Adapter, Lora, save_adapter
    from fedmerge.wire.tensorfile import write_tensors

    for name in ("strategies", "simulations"):
        shutil.copytree(PROJECT / name, tmp_path / name)
    shutil.copy(PROJECT / "deploy" / "federation.toml", tmp_path)
    draw = torch.Generator().manual_seed(0)
    for site in ("site-a", "site-b"):
        head = "base_model.model.layers.0.q_proj."
        tensors = {
            head + "lora_A.weight": torch.randn(4, 8, generator=draw),
            head + "lora_B.weight": torch.randn(8, 4, generator=draw),
        }
        save_adapter(Adapter(tensors, Lora(rank=4, alpha=8.0, target_modules=("q_proj",))), tmp_path / site)
    base = torch.randn(8, 8, generator=draw)
    for name, moved in (("base", 0.0), ("tune-a", 0.1), ("tune-b", 0.2)):
        (tmp_path / name).mkdir()
        tensors = {"layers.0.q_proj.weight": base + moved}
        write_tensors(tmp_path / name / "model.safetensors", tensors)
    return tmp_path


def run(command: str, cwd: Path, seconds: float = 500) -> str:
    bin_folder = Path(sys.executable).parent
    environment = os.environ | {"PATH": f"{bin_folder}{os.pathsep}{os.environ['PATH']}", "COLUMNS": "120"}
    done = subprocess.run(
        shlex.split(command),
        cwd=cwd,
        env=environment,
        capture_output=True,
        text=True,
        check=False,
        timeout=seconds,
    )
    assert done.returncode == 0, done.stdout + done.stderr
    return done.stdout


def test_the_readme_is_read_right() -> None:
    assert set(COMMANDS) >= SLOW | FLOWER | RUN_BY_THE_GATE
    assert [command for command in COMMANDS if command in STUDY] == STUDY
    assert len(QUICK) >= 4
    assert len(PYTHON) == 2


@pytest.mark.parametrize("command", QUICK)
def test_command(command: str, folder: Path) -> None:
    assert run(command, folder).strip()


@pytest.mark.slow
@pytest.mark.parametrize("command", sorted(SLOW))
def test_simulation(command: str, folder: Path) -> None:
    out = run(command, folder)
    assert "pooled" in out
    assert list((folder / "runs").glob("*/adapter/adapter_model.safetensors"))


@pytest.mark.slow
@pytest.mark.timeout(5400)
def test_studies_on_a_small_simulation(folder: Path) -> None:
    for command in STUDY:
        trains = command.startswith(("fedmerge compare", "fedmerge simulate"))
        assert run(f"{command} {SMALL}" if trains else command, folder, seconds=1800).strip()
    assert (folder / "run" / "report.html").is_file()
    assert (folder / "run" / "sweep" / "best" / "adapter_config.json").is_file()


@pytest.mark.parametrize("code", PYTHON)
def test_python(code: str, folder: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.chdir(folder)
    exec(compile(code, "README.md", "exec"), {})


def test_links_lead_somewhere() -> None:
    for target in re.findall(r"\]\((?!http)([^)#]+)\)", README):
        assert (PROJECT / target).exists(), target
    for path in re.findall(r"`((?:fedmerge|strategies|simulations|tests|benchmarks|scripts)/[^`]*)`", README):
        assert (PROJECT / path).exists(), path
