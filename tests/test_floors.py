"""Imports go down only (DESIGN: floors); the lower floors know neither Flower nor PEFT nor transformers."""

from __future__ import annotations

import ast
from collections.abc import Iterator
from pathlib import Path

import pytest

PACKAGE = Path(__file__).parent.parent / "fedmerge"
FLOORS = {
    "errors": 0, "logs": 0, "text": 0, "project": 0, "_version": 0,
    "rules": 1,
    "kernels": 2,
    "adapters": 3,
    "wire": 4,
    "silo": 5, "server": 5, "checkpoints": 5,
    "config": 6, "client_app": 6, "client_process": 6, "station": 6, "server_app": 6, "engine": 6,
    "study": 7, "deployment": 7,
    "cli": 8, "__main__": 8,
}  # fmt: skip
STRANGERS = {"silo": {"server"}, "server": {"silo"}, "checkpoints": {"silo", "server"}}
FORBIDDEN_BELOW_WIRE = {"flwr", "peft", "transformers", "datasets", "ray"}
MODULES = sorted(path for path in PACKAGE.rglob("*.py") if path.parent != PACKAGE or path.stem != "__init__")


def room(path: Path) -> str:
    first = path.relative_to(PACKAGE).parts[0]
    return first.removesuffix(".py")


def imported(path: Path) -> Iterator[str]:
    """Dotted names of all imports of a file, at any depth of nesting; type-checking ones included."""
    for node in ast.walk(ast.parse(path.read_text(encoding="utf-8"))):
        if isinstance(node, ast.Import):
            yield from (alias.name for alias in node.names)
        elif isinstance(node, ast.ImportFrom):
            assert node.level == 0, f"{path}:{node.lineno}: imports are absolute"
            yield from (f"{node.module}.{alias.name}" for alias in node.names)


@pytest.mark.parametrize("path", MODULES, ids=lambda path: path.relative_to(PACKAGE).as_posix())
def test_imports_go_down(path: Path) -> None:
    here = room(path)
    assert here in FLOORS, f"{here} has no floor yet: give it one"
    for name in imported(path):
        top, _, rest = name.partition(".")
        if top != "fedmerge":
            assert FLOORS[here] > 3 or top not in FORBIDDEN_BELOW_WIRE, f"{path}: {name}"
            continue
        there = rest.partition(".")[0]
        if there not in FLOORS:  # `from fedmerge import RULES`: the package's own namespace
            assert FLOORS[here] > 6, f"{path}: {name}: import it from its room"
            continue
        assert FLOORS[there] <= FLOORS[here], f"{path} (floor {FLOORS[here]}) imports {name}"
        assert there not in STRANGERS.get(here, ()), f"{path}: {here} does not know {there}"
