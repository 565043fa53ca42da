"""The runbook and the parties' pages name only what there is."""

from __future__ import annotations

import re
from pathlib import Path

import pytest

ELSEWHERE = {"doctor", "watch"}  # commands of other files, which have tests of their own


def pages(root: Path) -> list[Path]:
    return [root / "deploy" / name for name in ("README.md", "server/README.md", "silo/README.md")]


@pytest.fixture
def text(project_root: Path) -> str:
    return "\n".join(path.read_text(encoding="utf-8") for path in pages(project_root))


def test_every_command_of_a_folder_is_there(project_root, text):
    there = {path.name for path in (project_root / "deploy").rglob("*.sh")}
    assert set(re.findall(r"bin/([a-z]+\.sh)", text)) <= there


def test_every_subcommand_is_one(text):
    from fedmerge.cli.deploy import app

    known = {command.name for command in app.registered_commands}
    assert set(re.findall(r"fedmerge deploy ([a-z]+)", text)) <= known | ELSEWHERE


def test_every_unit_is_there(project_root, text):
    units = {path.stem for path in (project_root / "deploy").rglob("*.service")}
    assert set(re.findall(r"fedmerge-(?:super|prox)[a-z]+", text)) <= units


def test_every_key_of_the_run_config_is_one(text):
    from fedmerge.config import defaults

    assert set(re.findall(r"`((?:run|strategy|lora)\.[a-z-]+)", text)) <= set(defaults())


def test_every_failure_of_the_list_has_its_place(project_root):
    page = (project_root / "deploy/README.md").read_text(encoding="utf-8")
    for words in (
        "node is down", "server is down", "disk is full", "certificate is about to end", "to be revoked",
        "Keys are lost", "wrong base", "Rounds are partial", "Restore from a backup",
    ):  # fmt: skip
        assert words in page
