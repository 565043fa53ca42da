"""docs/reliability.md is that of the tests as they are, and every fault has one."""

from __future__ import annotations

import re
import runpy
import subprocess
import sys
from pathlib import Path

import pytest

PROJECT = Path(__file__).parents[2]
SCRIPT = runpy.run_path(str(PROJECT / "docs" / "reliability.py"))
FOUND = SCRIPT["by_number"](PROJECT / "tests")


def test_is_fresh() -> None:
    command = [sys.executable, PROJECT / "docs" / "reliability.py", "--check"]
    done = subprocess.run(command, capture_output=True, text=True, check=False)
    assert done.returncode == 0, done.stderr


@pytest.mark.parametrize("number", range(1, 51))
def test_every_fault_has_a_test(number: int) -> None:
    assert FOUND[number], f"no test is marked fault({number})"


def test_the_catalogue_has_all_fifty_once() -> None:
    groups = runpy.run_path(str(PROJECT / "tests" / "faults" / "catalogue.py"))["FAULTS"]
    numbers = [number for group in groups.values() for number in group]
    assert numbers == list(range(1, 51))


def test_every_file_among_the_faults_covers_some() -> None:
    for path in sorted((PROJECT / "tests" / "faults").glob("test_*.py")):
        assert list(SCRIPT["marked_in"](path)), path


def test_marks_are_read_however_they_are_written(tmp_path: Path) -> None:
    path = tmp_path / "test_x.py"
    path.write_text(
        "pytestmark = [pytest.mark.slow, pytest.mark.fault(3)]\n"
        "@fault(1, 2)\ndef test_one(): ...\n"
        "@pytest.mark.parametrize('x', [1])\ndef test_two(): ...\n"
        "def helper(): ...\n",
        encoding="utf-8",
    )
    found = [(test.name, test.numbers, test.slow) for test in SCRIPT["marked_in"](path)]
    assert found == [("test_one", (1, 2, 3), True), ("test_two", (3,), True)]


def test_links_lead_somewhere() -> None:
    page = (PROJECT / "docs" / "reliability.md").read_text(encoding="utf-8")
    for link in set(re.findall(r"\]\(((?!http)[^)]+)\)", page)):
        assert (PROJECT / "docs" / link).exists(), link
