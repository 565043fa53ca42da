"""What `flwr run` ships: configuration only."""

from __future__ import annotations

import shutil
import tomllib
from pathlib import Path

import tomli_w

from fedmerge import project


def write_bundle(folder: Path) -> Path:
    """What `flwr run` ships: the project's table of keys and components, README and LICENSE; no code."""
    folder.mkdir()
    source = project.root()
    table = tomllib.loads((source / "pyproject.toml").read_text(encoding="utf-8"))
    table["tool"]["flwr"]["app"].pop("fab-include", None)  # there is nothing else in this folder
    (folder / "pyproject.toml").write_text(tomli_w.dumps(table), encoding="utf-8")
    for name in ("README.md", "LICENSE"):
        if (source / name).is_file():
            shutil.copy(source / name, folder / name)
    return folder
