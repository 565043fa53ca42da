"""The command around the page; what the page says is tested in tests/study."""

import json
from pathlib import Path

import pytest

SCORES = {"test": {"a": 1.5, "b": 1.25}, "validation": {}, "mean": 1.375, "pooled": 1.4, "worst": 1.5}
RESULT = {
    "metric": "bits_per_byte",
    "higher_is_better": False,
    "silos": ["a", "b"],
    "candidates": {"base": SCORES, "merged": SCORES | {"mean": 1.2}},
    "kept": "merged",
    "rule": "fedavg()",
    "space": "product()",
}


@pytest.fixture
def run(tmp_path: Path) -> Path:
    folder = tmp_path / "run"
    folder.mkdir()
    (folder / "config.toml").write_text("[run]\nname = 'small'\nrounds = 1\nseed = 0\n")
    (folder / "result.json").write_text(json.dumps(RESULT))
    return folder


def test_the_page_is_written_into_the_run(fedmerge, run: Path) -> None:
    result = fedmerge("report", run)
    assert result.exit_code == 0, result.output
    assert (
        "The merge reaches 1.200 bits per byte, better than the best trivial baseline (base, 1.375"
        in result.stdout
    )
    assert f"report   {run / 'report.html'}" in result.stdout
    page = (run / "report.html").read_text(encoding="utf-8")
    assert page.startswith("<!DOCTYPE html>")
    assert fedmerge("report", run).exit_code == 0  # again, over the first one
    assert (run / "report.html").read_text(encoding="utf-8") == page


@pytest.mark.parametrize(("form", "start"), [("md", "# small"), ("json", '{\n  "kind": "report"')])
def test_other_formats(fedmerge, run: Path, tmp_path: Path, form: str, start: str) -> None:
    assert fedmerge("report", run, "--format", form).exit_code == 0
    assert (run / f"report.{form}").read_text(encoding="utf-8").startswith(start)
    assert fedmerge("report", run, "--format", form, "-o", tmp_path / "new" / "here").exit_code == 0
    assert (tmp_path / "new" / "here").read_bytes() == (run / f"report.{form}").read_bytes()


def test_json_is_one_object(fedmerge, run: Path) -> None:
    payload = json.loads(fedmerge("report", run, "--json").stdout)
    assert payload["report"] == str(run / "report.html")
    assert payload["bytes"] == (run / "report.html").stat().st_size
    assert payload["title"] == "small"


def test_refusals_are_a_sentence_and_write_nothing(fedmerge, run: Path, tmp_path: Path) -> None:
    (run / "result.json").write_text("{")
    result = fedmerge("report", run)
    assert result.exit_code == 1
    assert result.stderr.startswith(f"fedmerge: {run / 'result.json'} is no JSON")
    assert sorted(path.name for path in run.iterdir()) == ["config.toml", "result.json"]
    assert "is no run's folder" in fedmerge("report", tmp_path).stderr
    assert fedmerge("report").exit_code == 2


def test_a_full_place_is_a_sentence(fedmerge, run: Path, tmp_path: Path) -> None:
    (tmp_path / "file").write_text("")
    result = fedmerge("report", run, "-o", tmp_path / "file" / "report.html")
    assert result.exit_code == 1
    assert "can't be written" in result.stderr
