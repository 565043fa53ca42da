"""The bundle that Flower ships to every node: configuration, no code, no data."""

from __future__ import annotations

import io
import shutil
import zipfile
from pathlib import Path

PROJECT = Path(__file__).parent.parent


def bundle(tmp_path: Path) -> list[str]:
    """The names in the FAB of a copy of this project in which private files lie about."""
    from flwr.cli.build import build_fab_from_disk

    for name in ("pyproject.toml", "README.md", "LICENSE", ".gitignore"):
        shutil.copy(PROJECT / name, tmp_path / name)
    for name in ("strategies", "simulations", "fedmerge", "tests"):
        shutil.copytree(PROJECT / name, tmp_path / name, ignore=shutil.ignore_patterns("__pycache__"))
    for private in ("patients.jsonl", "patients.json", "notes.md", "secret.yaml", "strategies/patients.json"):
        (tmp_path / private).write_text("{}")
    return zipfile.ZipFile(io.BytesIO(build_fab_from_disk(tmp_path))).namelist()


def test_the_fab_holds_toml_readme_and_license_only(tmp_path: Path) -> None:
    names = bundle(tmp_path)
    assert {"pyproject.toml", "README.md", "LICENSE", "strategies/ties.toml"} <= set(names)
    others = [n for n in names if not n.endswith(".toml") and n not in ("README.md", "LICENSE")]
    assert [n for n in others if not n.startswith(".info/")] == []
    assert not [n for n in names if n.endswith(".py")]
