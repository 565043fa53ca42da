"""`fedmerge one-shot`, `add` and `remove` as a user calls them, on tiny runs."""

import json
from pathlib import Path

import pytest

from fedmerge.cli.changed import rows, shown
from fedmerge.cli.one_shot import check_output
from fedmerge.config import read_config
from fedmerge.engine.local import run_local
from fedmerge.errors import ConfigError
from fedmerge.server.storage import to_toml
from fedmerge.study.admission import adapter_folders, name_of
from fedmerge.wire.files import load_adapter, save_adapter

ROW = {"test": {"a": 0.5, "b": 0.75}, "mean": 0.625, "worst": 0.5}


@pytest.fixture
def place(tiny_flat, tmp_path, monkeypatch):
    """A folder with a simulation, a run of it, and an inbox with two adapters of other starts."""
    flat = tiny_flat(run__rounds=1, run__record=True, run__baselines="", run__output=str(tmp_path / "run"))
    run_local(read_config(flat))
    for seed in (1, 2):
        apart = flat | {
            "run.seed": seed,
            "data.seed": 0,
            "data.silos": "rocks",
            "run.output": f"{tmp_path}/{seed}",
        }
        adapter = load_adapter(run_local(read_config(apart)) / "adapter")
        save_adapter(adapter, tmp_path / "inbox" / f"site-{seed}")
    (tmp_path / "sim.toml").write_text(to_toml(flat | {"run.output": ""}))
    monkeypatch.chdir(tmp_path)
    return tmp_path


def told(result):
    assert result.exit_code == 0, result.output
    return json.loads(result.stdout)


def test_a_folder_of_adapters_becomes_a_run_that_goes_on(fedmerge, place: Path) -> None:
    shot = told(fedmerge("one-shot", "inbox", "--simulation", "sim.toml", "-o", "shot", "--json"))
    assert shot["one_shot"]["names"] == ["site-1", "site-2"]
    assert shot["folder"] == str(place / "shot")
    assert "alone/site-2" in shot["candidates"]
    added = told(fedmerge("add", "shot", "run", "--weight", "2", "--json"))
    assert added["folder"] == str(place / "shot+run")
    assert added["changed"]["silo"] == "run"
    removed = told(fedmerge("remove", "shot+run", "site-1", "--json"))
    assert removed["folder"] == str(place / "shot+run-site-1")
    assert list(removed["changed"]["after"]["test"]) == ["birds", "rocks", "ships"]
    negated = told(fedmerge("remove", "run", "rocks", "--negate", "0.5", "-o", "less", "--json"))
    assert negated["rule"] == "task_arithmetic(scale=0.5, negate=('rocks',))"
    shown_one = fedmerge("remove", "run", "rocks")
    assert "rocks left out: bits per byte, lower is better" in shown_one.stdout
    assert str(place / "run-rocks" / "adapter") in shown_one.stdout
    for command in (("evaluate", "shot/adapter", "sim.toml"), ("export", "shot", "-o", "exported")):
        assert fedmerge(*command).exit_code == 0


def test_bad_input_is_a_sentence_and_writes_nothing(fedmerge, place: Path) -> None:
    def refused(*arguments: object) -> str:
        result = fedmerge(*arguments)
        assert result.exit_code == 1, result.output
        return " ".join(result.stderr.split())

    simulation = ("--simulation", "sim.toml")
    (place / "empty").mkdir()
    assert "holds neither an adapter" in refused("one-shot", "empty", *simulation)
    assert "2 adapters are called 'site-1'" in refused(
        "one-shot", "inbox/site-1", "inbox/site-1", *simulation
    )
    assert "expected 2 different names" in refused("one-shot", "inbox", "--names", "a", *simulation)
    assert "there is something already" in refused("one-shot", "inbox", *simulation, "-o", "run")
    assert "did you mean 'rocks'?" in refused("remove", "run", "rokcs")
    assert "there is something already" in refused("remove", "run", "rocks", "-o", "inbox")
    assert "has a silo 'rocks' already" in refused("add", "run", "inbox/site-1", "--name", "rocks")
    assert "inbox holds 2 adapters; name one of them, inbox/site-1 say" in refused("add", "run", "inbox")
    assert "no run's folder" in refused("add", "inbox", "inbox/site-1")
    assert sorted(path.name for path in place.iterdir()) == ["1", "2", "empty", "inbox", "run", "sim.toml"]


def test_what_is_shown_of_a_change() -> None:
    changed = {"before": ROW, "after": {"test": {"a": 0.75}, "mean": 0.75, "worst": 0.75}, "split": "test"}
    assert rows(changed, higher=True) == [
        ["", "before", "after", "difference", ""],
        ["a", "0.500", "0.750", "+0.250", "better"],
        ["b", "0.750", "-", "-", ""],
        ["mean", "0.625", "0.750", "+0.125", "better"],
        ["worst silo", "0.500", "0.750", "+0.250", "better"],
    ]
    assert rows(changed, higher=False)[1][-1] == "worse"
    assert rows({"before": ROW, "after": ROW, "split": "test"}, higher=True)[1][-1] == ""
    result = {
        "changed": changed | {"kind": "remove", "silo": "b", "notes": ["this is not unlearning"]},
        "metric": "accuracy", "higher_is_better": True, "rule": "fedavg()", "space": "product()",
        "adapter": "new/adapter",
    }  # fmt: skip
    lines = [line for line in shown(result, Path("new")) if isinstance(line, str)]
    assert lines[1] == "b left out: accuracy, higher is better, on each silo's test rows"
    assert "note     this is not unlearning" in lines


def test_adapters_are_found_and_named(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    for name in ("inbox/b", "inbox/a", "run/adapter"):
        (tmp_path / name).mkdir(parents=True)
        (tmp_path / name / "adapter_config.json").write_text("{}")
    monkeypatch.chdir(tmp_path)
    found = adapter_folders(["inbox", "run", "owner/site"])
    assert found == ["inbox/a", "inbox/b", "run/adapter", "owner/site"]
    assert [name_of(source) for source in found] == ["a", "b", "run", "site"]
    monkeypatch.chdir(tmp_path / "inbox" / "a")
    assert name_of(".") == "a"


def test_an_interrupted_run_may_be_written_again(tmp_path: Path) -> None:
    (tmp_path / "config.toml").write_text("")
    assert check_output(tmp_path) == tmp_path
    (tmp_path / "result.json").write_text("{}")
    with pytest.raises(ConfigError, match="there is something already"):
        check_output(tmp_path)
