"""The page of measured comparisons says what compare.json says, and the recipes' headers have room for it."""

import importlib.util
import sys
from pathlib import Path

import pytest

PROJECT = Path(__file__).parent.parent.parent


@pytest.fixture(scope="module")
def results():
    specification = importlib.util.spec_from_file_location("results", PROJECT / "docs" / "results.py")
    module = importlib.util.module_from_spec(specification)
    sys.modules["results"] = module  # dataclasses look their module up by name
    specification.loader.exec_module(module)
    return module


def row(name, mean, verdict=None, kind="strategy", **changed):
    difference = verdict and {"mean": mean - 0.7, "low": mean - 0.71, "high": mean - 0.69, "verdict": verdict}
    cost = (
        {"bytes_up": 1e6, "bytes_down": 2e6, "merge_seconds": 0.25, "seconds": 30.0}
        if kind == "strategy"
        else {}
    )
    none = dict.fromkeys(("bytes_up", "bytes_down", "merge_seconds", "knob"))
    return none | {
        "name": name, "kind": kind, "mean": mean, "spread": 0.01, "worst": mean - 0.1, "worst_silo": "b",
        "difference": difference or None, **cost, **changed,
    }  # fmt: skip


@pytest.fixture
def found():
    return {
        "metric": "accuracy", "higher_is_better": True, "silos": ["a", "b"], "rounds": 1,
        "reference": "fedavg", "machine": "a machine",
        "tuned": "scale", "rows_of_each_silo": 40, "notes": ["how it was tuned"],
        "rows": [
            row("iso_c", 0.8, "better", knob=1.0), row("fedavg", 0.7, knob=3.0), row("krum", 0.6, "worse"),
            row("base", 0.5, "worse", kind="baseline"),
        ],
    }  # fmt: skip


def test_a_section_has_a_row_for_each_strategy_and_baseline(results, found):
    study = results.STUDIES[0]
    lines = results.section(study, found)
    table = [line for line in lines if line.startswith("| ")]
    assert (
        "| `iso_c` | 0.800 | 0.010 | 0.700 b | 1 | +0.100 | +0.090 to +0.110 | better | 3.0 | 0.25 |" in table
    )
    assert "| `fedavg` | 0.700 | 0.010 | 0.600 b | 3 |  |  |  | 3.0 | 0.25 |" in table
    assert any(line.startswith("| *base* | 0.500") for line in table)
    assert len({line.count("|") for line in table}) == 1
    assert lines[-1] == "- how it was tuned"
    assert any(study.command[1] in line and "--seeds" in line for line in lines)


def test_the_headers_have_room_and_show_command_machine_and_result(results, found, tmp_path, monkeypatch):
    monkeypatch.setattr(results, "ROOT", tmp_path)
    (tmp_path / "simulations").mkdir()
    for study in (study for study in results.STUDIES if study.header):
        text = (PROJECT / "simulations" / f"{study.simulation}.toml").read_text()
        path = tmp_path / "simulations" / f"{study.simulation}.toml"
        path.write_text(text)
        results.write_header(study, found)
        written = path.read_text()
        results.write_header(study, found)
        assert path.read_text() == written  # twice is as good as once
        assert written.count(results.OPENING) == 1
        for word in (
            "a machine",
            "30 s of training",
            "iso_c x1",
            "0.800 (sd 0.010)",
            "+0.100 to fedavg: better",
            "krum",
            "base",
        ):
            assert word in written
        assert all(line.startswith("#") for line in written.partition("\n\n")[0].splitlines())


def test_every_measured_simulation_is_packaged(results):
    for study in results.STUDIES:
        assert (PROJECT / "simulations" / f"{study.simulation}.toml").is_file()
