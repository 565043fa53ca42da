"""The wheel as a stranger gets it: one import name, the recipes inside, quick and lazy to start."""

from __future__ import annotations

import resource
import subprocess
import sys
import sysconfig
import venv
import zipfile
from pathlib import Path

import pytest

PROJECT = Path(__file__).parent.parent


@pytest.fixture(scope="module")
def wheel(tmp_path_factory: pytest.TempPathFactory) -> Path:
    out = tmp_path_factory.mktemp("wheel")
    command = [sys.executable, "-m", "build", "--wheel", "--outdir", str(out), str(PROJECT)]
    done = subprocess.run(command, capture_output=True, text=True, check=False)
    assert done.returncode == 0, done.stdout + done.stderr
    return next(out.glob("*.whl"))


@pytest.fixture(scope="module")
def clean_python(wheel: Path, tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A fresh environment that holds the wheel; third parties are lent by the one that runs the tests."""
    folder = tmp_path_factory.mktemp("clean")
    venv.create(folder, with_pip=False)
    python = folder / "bin" / "python"
    pip = [sys.executable, "-m", "pip", "--python", str(python), "install", "-q", "--no-deps", str(wheel)]
    subprocess.run(pip, check=True, capture_output=True)
    site = next((folder / "lib").glob("python*/site-packages"))
    (site / "lent.pth").write_text(sysconfig.get_paths()["purelib"] + "\n")
    return python


def run(python: Path, code: str, cwd: Path) -> str:
    done = subprocess.run([str(python), "-c", code], capture_output=True, text=True, check=False, cwd=cwd)
    assert done.returncode == 0, done.stderr
    return done.stdout


def test_the_wheel_has_one_import_name_and_carries_what_it_needs(wheel: Path) -> None:
    names = zipfile.ZipFile(wheel).namelist()
    tops = {name.split("/")[0] for name in names if ".dist-info/" not in name}
    assert tops == {"fedmerge"}
    for needed in (
        "fedmerge/_project/pyproject.toml",
        "fedmerge/_project/strategies/ties.toml",
        "fedmerge/_project/simulations/builtin.toml",
        "fedmerge/_project/deploy/federation.toml",
        "fedmerge/_project/deploy/server/nginx.conf",
        "fedmerge/_project/deploy/silo/bin/supernode.sh",
        "fedmerge/silo/builtin/base/model.safetensors",
        "fedmerge/study/report/page.css",
        "fedmerge/study/report/page.js",
        "fedmerge/py.typed",
    ):
        assert needed in names
    assert not [name for name in names if name.startswith("fedmerge/_project/") and name.endswith(".py")]
    base = zipfile.ZipFile(wheel).getinfo("fedmerge/silo/builtin/base/model.safetensors")
    assert base.file_size <= 5_000_000


def test_import_is_lazy(clean_python: Path, tmp_path: Path) -> None:
    code = "import fedmerge, sys; print(fedmerge.__file__, *sys.modules, sep='\\n')"
    where, *modules = run(clean_python, code, tmp_path).splitlines()
    assert str(clean_python.parent.parent) in where
    assert not {"flwr", "transformers", "peft", "datasets", "ray"} & set(modules)


def test_the_recipes_are_found_in_the_installed_package(clean_python: Path, tmp_path: Path) -> None:
    code = "from fedmerge import project; print(sorted(project.recipes('strategies')), project.root())"
    out = run(clean_python, code, tmp_path)
    assert "'ties'" in out
    assert "_project" in out


def test_help_takes_less_than_a_second(clean_python: Path, tmp_path: Path) -> None:
    # CPU seconds of the child, so that a busy machine does not fail it; the best of three.
    command = [str(clean_python.parent / "fedmerge"), "--help"]
    seconds = []
    for _ in range(3):
        before = resource.getrusage(resource.RUSAGE_CHILDREN)
        done = subprocess.run(command, capture_output=True, text=True, check=False, cwd=tmp_path)
        after = resource.getrusage(resource.RUSAGE_CHILDREN)
        assert done.returncode == 0, done.stderr
        assert "simulate" in done.stdout
        seconds.append(after.ru_utime + after.ru_stime - before.ru_utime - before.ru_stime)
    assert min(seconds) < 1.0, seconds
