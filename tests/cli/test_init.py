import json
import tomllib

import pytest

from fedmerge import config


def test_a_project_is_written_and_named(fedmerge, tmp_path) -> None:
    folder = tmp_path / "deep" / "project"
    result = fedmerge("init", folder)
    assert result.exit_code == 0
    assert {path.name for path in folder.iterdir()} == {
        "README.md",
        "notes.jsonl",
        "simulation.toml",
        "ties.toml",
    }
    assert "fedmerge simulate simulation.toml" in result.stdout


def test_an_empty_folder_is_taken_and_json_says_what_was_written(fedmerge, tmp_path) -> None:
    written = json.loads(fedmerge("init", tmp_path, "--json").stdout)
    assert written["folder"] == str(tmp_path)
    assert "simulation.toml" in written["files"]


def test_a_filled_folder_is_refused_and_left_alone(fedmerge, tmp_path) -> None:
    (tmp_path / "mine.txt").write_text("mine")
    result = fedmerge("init", tmp_path)
    assert result.exit_code == 1
    assert "expected a new or an empty folder" in result.stderr
    assert [path.name for path in tmp_path.iterdir()] == ["mine.txt"]


def test_a_file_in_the_way_is_refused(fedmerge, tmp_path) -> None:
    (tmp_path / "file").write_text("")
    assert fedmerge("init", tmp_path / "file").exit_code == 1


@pytest.fixture
def project(fedmerge, tmp_path, monkeypatch):
    fedmerge("init", tmp_path / "project")
    monkeypatch.chdir(tmp_path / "project")
    return tmp_path / "project"


def test_its_files_are_valid(project) -> None:
    read = config.read_config(config.overlay(project / "simulation.toml", project / "ties.toml"))
    assert read.strategy.rule == "ties(density=0.2)"
    assert config.strategy_keys(project / "ties.toml")
    assert len((project / "README.md").read_text().splitlines()) <= 5
    tomllib.loads((project / "simulation.toml").read_text())


def test_its_data_makes_two_silos(project) -> None:
    from fedmerge.silo.data import load_silos

    silos = load_silos(config.read_config(config.overlay(project / "simulation.toml")).silo.data)
    assert sorted(silos) == ["harbour", "kitchen"]
    assert all(silo.train and silo.validation and silo.test for silo in silos.values())
