"""`--help` must be quick: what is heavy is imported by the command that needs it, when it needs it."""

import subprocess
import sys

import pytest

HEAVY = ("torch", "flwr", "transformers", "datasets", "peft", "numpy", "ray", "matplotlib", "rich.progress")

PROGRAM = """
import sys
from fedmerge.cli import main
sys.argv = ["fedmerge", *{arguments}]
try:
    main()
except SystemExit as end:
    status = end.code
print("status", status)
print("loaded", *sorted(set(sys.modules) & {heavy}))
"""


def run(*arguments: str) -> str:
    program = PROGRAM.format(arguments=list(arguments), heavy=set(HEAVY))
    return subprocess.run([sys.executable, "-c", program], capture_output=True, text=True, check=True).stdout


@pytest.mark.parametrize("arguments", [("--help",), ("simulate", "--help"), ("--version",)])
def test_help_loads_nothing_heavy(arguments: tuple[str, ...]) -> None:
    lines = run(*arguments).splitlines()
    assert lines[-2:] == ["status 0", "loaded"]


def test_help_is_a_map_of_the_commands() -> None:
    text = run("--help")
    for command in ("simulate", "report", "evaluate", "merge", "rules", "init", "doctor"):
        assert f" {command} " in text


def test_init_loads_nothing_heavy(tmp_path) -> None:
    lines = run("init", str(tmp_path / "new")).splitlines()
    assert lines[-2:] == ["status 0", "loaded"]
