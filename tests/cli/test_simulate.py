"""The command around an engine; the engine itself is tested in tests/engine."""

import json
from pathlib import Path

import pytest

from fedmerge import config
from fedmerge.cli import simulate
from fedmerge.errors import CheckpointError, RoundFailed

SCORES = {"test": {"a": 1.5, "b": 1.25}, "validation": {}, "mean": 1.375, "pooled": 1.4, "worst": 1.5}
RESULT = {
    "metric": "bits_per_byte",
    "higher_is_better": False,
    "silos": ["a", "b"],
    "candidates": {"base": SCORES, "merged": SCORES | {"mean": 1.2}},
    "kept": "merged",
    "seed": 0,
    "rule": "fedavg()",
    "space": "product()",
    "rounds": [{}],
    "bytes_up": 1_500_000,
    "bytes_down": 2_000_000,
    "seconds": {"rounds": 2.0},
    "refused": [],
    "adapter": "/runs/x/adapter",
}


@pytest.fixture
def engine(monkeypatch, tmp_path):
    """An engine that writes `engine.result`; the configurations it was given are in `engine.ran`."""

    class Engine:
        def __init__(self) -> None:
            self.ran: list = []
            self.result: dict = RESULT
            self.error: BaseException | None = None

        def __call__(self, engine, read, observer) -> Path:
            if self.error:
                raise self.error
            self.ran = [*self.ran, (str(engine), read)]
            observer.round_started(1, ["a", "b"])
            (tmp_path / "result.json").write_text(json.dumps(self.result))
            return tmp_path

    monkeypatch.chdir(tmp_path)
    fake = Engine()
    monkeypatch.setattr(simulate, "_engine", fake)
    return fake


def test_the_default_job_and_its_end(fedmerge, engine, tmp_path) -> None:
    result = fedmerge("simulate")
    assert result.exit_code == 0, result.output
    (name, read), *_ = engine.ran
    assert name == "local"
    assert read.flat == config.defaults()
    for said in (
        "bits per byte, lower is better",
        "merged (kept)",
        f"run      {tmp_path}",
        "adapter  /runs/x/adapter",
        "sent     1.5 MB up, 2.0 MB down\n",
        "s in all, loading included",
        "next     fedmerge simulate --set 'strategy.rule=ties(density=0.2)'",
    ):
        assert said in result.stdout


def test_recipe_strategy_and_settings_are_laid_over_each_other(fedmerge, engine) -> None:
    Path("s.toml").write_text("[strategy]\nrule = 'ties()'\n[run]\nseed = 5\n")
    Path("t.toml").write_text("[strategy]\nrule = 'dare()'\n")
    arguments = ("s.toml", "--strategy", "t.toml", "--set", "run.rounds=2", "--set", "strategy.quorum=1")
    assert fedmerge("simulate", *arguments, "--engine", "flower").exit_code == 0
    (name, read), *_ = engine.ran
    assert (name, read.strategy.rule, read.run.seed, read.run.rounds) == ("flower", "dare()", 5, 2)
    assert read.strategy.quorum == 1.0


def test_resume_is_a_key_of_the_run_and_not_of_what_follows(fedmerge, engine) -> None:
    result = fedmerge("simulate", "--resume", "--set", "run.seed=3")
    (_, read), *_ = engine.ran
    assert (read.run.resume, read.run.seed) == ("auto", 3)
    assert read.folder == config.read_config(config.overlay(sets=["run.seed=3"])).folder
    assert "next     fedmerge simulate --set run.seed=3 --set 'strategy.rule=" in result.stdout


def test_json_is_the_result_and_what_is_around_it(fedmerge, engine, tmp_path) -> None:
    payload = json.loads(fedmerge("simulate", "--json").stdout)
    assert payload | RESULT == payload
    assert payload["folder"] == str(tmp_path)
    assert payload["total_seconds"] > 0


def test_refused_replies_are_counted(fedmerge, engine) -> None:
    engine.result = RESULT | {"refused": [{"round": 1, "silo": "a", "reason": "NaN"}]}
    assert "; 1 reply was refused, metrics.jsonl says why" in fedmerge("simulate").stdout


def test_the_next_command_changes_the_rule_and_nothing_else() -> None:
    sets = ["strategy.rule=ties(density=0.5)", "run.seed=2"]
    read = config.read_config(config.overlay(sets=sets))
    assert simulate.next_command("my sim.toml", sets, read) == (
        "fedmerge simulate 'my sim.toml' --set run.seed=2 --set 'strategy.rule=fedavg()'"
    )


def test_the_next_command_keeps_the_strategy_file_but_not_the_folder() -> None:
    """The file may set the space; a folder that holds a run of another config is refused."""
    read = config.read_config(config.overlay())
    assert simulate.next_command("", ["run.output=here"], read, "ties") == (
        "fedmerge simulate --strategy ties --set 'strategy.rule=ties(density=0.2)'"
    )


@pytest.mark.parametrize(
    ("error", "status", "said"),
    [
        (RoundFailed("round 2: no silo replied"), 1, "fedmerge: round 2: no silo replied"),
        (KeyboardInterrupt(), 130, "fedmerge: stopped by Ctrl-C; what the run had written lies in /"),
        (OSError(28, "No space left on device"), 1, "fedmerge: No space left on device"),
    ],
)
def test_a_run_that_fails(fedmerge, engine, error: BaseException, status: int, said: str) -> None:
    engine.error = error
    result = fedmerge("simulate")
    assert result.exit_code == status
    assert result.stderr.startswith(said)
    assert result.stdout == ""


@pytest.mark.parametrize(
    ("content", "said"), [(None, "did not come to its end"), ("{", "not JSON"), ("[]", "no JSON object")]
)
def test_a_result_that_can_not_be_read(tmp_path, content: str | None, said: str) -> None:
    if content is not None:
        (tmp_path / "result.json").write_text(content)
    with pytest.raises(CheckpointError, match=said):
        simulate.read_result(tmp_path)
