"""docs/rules.md and its picture are those of the rules as they are."""

from __future__ import annotations

import re
import subprocess
import sys
from pathlib import Path

import pytest

from fedmerge.rules import RULES, parse_rule

PROJECT = Path(__file__).parents[2]
PAGE = (PROJECT / "docs" / "rules.md").read_text(encoding="utf-8")


@pytest.mark.parametrize("script", ["rules_table.py", "rules_picture.py"])
def test_is_fresh(script: str) -> None:
    done = subprocess.run(
        [sys.executable, PROJECT / "docs" / script, "--check"], capture_output=True, text=True, check=False
    )
    assert done.returncode == 0, done.stderr


def test_a_stale_table_is_noticed(tmp_path: Path) -> None:
    docs = tmp_path / "docs"
    docs.mkdir()
    (docs / "rules_table.py").write_bytes((PROJECT / "docs" / "rules_table.py").read_bytes())
    (docs / "rules.md").write_text(PAGE.replace("| `median` |", "| `medium` |"), encoding="utf-8")
    script = [sys.executable, docs / "rules_table.py"]
    stale = subprocess.run([*script, "--check"], capture_output=True, text=True, check=False)
    assert stale.returncode == 1
    assert "stale" in stale.stderr
    assert subprocess.run(script, check=False).returncode == 0
    assert (docs / "rules.md").read_text(encoding="utf-8") == PAGE


def test_links_lead_somewhere() -> None:
    for link in re.findall(r"\]\(((?!http)[^)]+)\)", PAGE):
        assert (PROJECT / "docs" / link).exists(), link


def test_rules_named_in_the_guide_can_be_read() -> None:
    guide = PAGE.partition("## Which rule when")[2].partition("## Catalogue")[0]
    named = set(re.findall(r"`(\w+\([^`.]*(?:\d\.\d[^`.]*)*\))`", guide)) - {"product()"}
    assert len(named) > 8
    for rule in named:
        assert parse_rule(rule)


def test_every_rule_stands_in_both_tables() -> None:
    for name in RULES:
        assert f"`{name}(" in PAGE
        assert name == "chain" or f"\n| `{name}` |" in PAGE
