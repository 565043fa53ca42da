"""Whatever is wrong with what was given: one sentence that names it, a status above 0, no traceback."""

import json
from pathlib import Path

import pytest

ROWS = "".join(json.dumps({"text": f"row {number}", "silo": "ab"[number % 2]}) + "\n" for number in range(20))


@pytest.fixture
def simulation(tmp_path: Path, monkeypatch) -> Path:
    """A simulation of two silos that would run; the tests break it."""
    monkeypatch.chdir(tmp_path)
    (tmp_path / "rows.jsonl").write_text(ROWS)
    path = tmp_path / "simulation.toml"
    path.write_text(
        "[data]\nsource = 'rows.jsonl'\npartition = \"by(column='silo')\"\nsilos = ''\n[train]\nsteps = 1\n"
    )
    return path


def refused(result) -> str:
    """The one sentence of a refusal."""
    assert result.exit_code == 1, result.output
    assert result.stdout == ""
    assert "Traceback" not in result.stderr
    *progress, sentence = result.stderr.splitlines()
    assert sentence.startswith("fedmerge: "), result.stderr
    assert "unforeseen" not in sentence, sentence
    assert len(progress) <= 2, result.stderr
    return sentence


@pytest.mark.parametrize(
    ("setting", "said"),
    [
        ("strategy.rule=tise(density=0.2)", "did you mean 'ties'"),
        ("strategy.rule=ties(densty=0.2)", "density"),
        ("strategy.rule=ties(density=20)", "density=20"),
        ("strategy.rule=ties(density=", "rule"),
        ("strategy.space=prodct()", "product"),
        ("strategy.shadows=fedavg() @ nowhere()", "nowhere"),
        ("strategy.server-optimizer=adm()", "adam"),
        ("strategy.guard=whatever()", "whatever"),
        ("strategy.quorum=2", "strategy.quorum"),
        ("train.steps=many", "train.steps = 'many': expected an integer"),
        ("train.steps=0", "train.epochs and train.steps are both 0"),
        ("train.learning-rate=-1", "train.learning-rate"),
        ("train.learnig-rate=0.1", "did you mean 'train.learning-rate'"),
        ("lora.rank=0", "lora.rank"),
        ("run.rounds=0", "run.rounds"),
        ("run.keep=first", "run.keep"),
        ("wire.encoding=int3", "wire.encoding"),
        ("nonsense", "expected key=value"),
        ("data.partition=dirichlet(alpha=0)", "alpha"),
    ],
)
def test_settings(fedmerge, simulation: Path, setting: str, said: str) -> None:
    assert said in refused(fedmerge("simulate", simulation, "--set", setting))


@pytest.mark.parametrize(
    ("setting", "said"),
    [
        ("data.source=nowhere.jsonl", "nowhere.jsonl"),
        ("data.source=empty.jsonl", "empty.jsonl"),
        ("data.text=txt", "txt"),
        ("data.partition=by(column='hospital')", "hospital"),
        ("data.silos=a, c", "no silo 'c'"),
        ("base.model=./nowhere", "nowhere"),
    ],
)
@pytest.mark.parametrize("dry", [["--dry-run"], []])
def test_data_and_base(fedmerge, simulation: Path, setting: str, said: str, dry: list[str]) -> None:
    Path("empty.jsonl").write_text("")
    assert said in refused(fedmerge("simulate", simulation, "--set", setting, *dry))


def test_names_of_recipes(fedmerge, simulation: Path) -> None:
    assert "did you mean 'clinc-domains'" in refused(fedmerge("simulate", "clinc-domain"))
    assert "no file" in refused(fedmerge("simulate", simulation, "--strategy", "nowhere.toml"))


def test_files_that_are_no_recipes(fedmerge, simulation: Path) -> None:
    Path("broken.toml").write_text("[run\n")
    assert "not valid TOML" in refused(fedmerge("simulate", "broken.toml"))
    Path("strategy.toml").write_text("[strategy]\nrule = 'ties()'\n[train]\nsteps = 3\n")
    sentence = refused(fedmerge("simulate", simulation, "--strategy", "strategy.toml"))
    assert "a strategy file sets [strategy] only; it also sets train.steps" in sentence


def test_a_folder_of_another_run(fedmerge, simulation: Path) -> None:
    Path("there").mkdir()
    Path("there", "config.toml").write_text("[run]\nseed = 7\n")
    sentence = refused(fedmerge("simulate", simulation, "--set", "run.output=there"))
    assert "another config" in sentence


def test_a_folder_of_something_else(fedmerge, simulation: Path) -> None:
    Path("there").mkdir()
    Path("there", "thesis.tex").write_text("")
    assert "thesis.tex" in refused(fedmerge("simulate", simulation, "--set", "run.output=there"))


def test_what_is_no_adapter(fedmerge, simulation: Path) -> None:
    Path("folder").mkdir()
    assert "folder" in refused(fedmerge("evaluate", "folder", simulation))
    assert "folder" in refused(fedmerge("merge", "folder", "folder", "-o", "out"))
    assert not Path("out").exists()


def test_json_of_a_refusal(fedmerge, simulation: Path) -> None:
    result = fedmerge("simulate", simulation, "--set", "train.steps=many", "--json")
    assert result.exit_code == 1
    error = json.loads(result.stdout)["error"]
    assert error["kind"] == "ConfigError"
    assert error["message"] in result.stderr
