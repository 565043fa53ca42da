"""`fedmerge sweep` on the command line."""

from __future__ import annotations

import json
import tomllib
from pathlib import Path

import pytest

TEXT = "ties(density=[0.2, 0.6])"


@pytest.fixture
def adapters(recorded: Path, tmp_path: Path) -> list[Path]:
    """The deltas of a run as adapters on disk."""
    from fedmerge import save_adapter
    from fedmerge.study.recorded import open_run

    deltas = open_run(recorded).round(1).deltas
    return [save_adapter(delta, tmp_path / silo) for silo, delta in deltas.items()]


def test_a_table_and_the_best(fedmerge, recorded: Path):
    done = fedmerge("sweep", recorded, "--candidates", TEXT, "--rows", 3)
    assert done.exit_code == 0, done.output
    assert "3 candidates: bits per byte, lower is better; measured on 3 validation rows" in done.stdout
    for word in ("fedavg()", "ties(density=0.6)", "base", "kept", "the honest one", "best:"):
        assert word in done.stdout
    assert (recorded / "sweep" / "best" / "adapter_config.json").is_file()
    again = fedmerge("sweep", recorded, "--candidates", TEXT, "--rows", 3)
    assert "3 were known from an earlier call" in again.stdout


def test_json(fedmerge, recorded: Path):
    done = fedmerge("sweep", recorded, "--candidates", TEXT, "--rows", 3, "--json")
    found = json.loads(done.stdout)
    assert found["kind"] == "sweep"
    assert found["candidates"] == 3
    assert found["best"]["candidate"] in {row["candidate"] for row in found["ranking"]}
    assert found == json.loads((recorded / "sweep" / "result.json").read_text())


def test_a_search(fedmerge, recorded: Path):
    text = "ties(density=between(0.1, 1.0)) @ [product(), core()]"
    done = fedmerge("sweep", recorded, "--candidates", text, "--search", "random", "--trials", 4, "--rows", 2)
    assert done.exit_code == 0, done.output
    assert len((recorded / "sweep" / "leaderboard.jsonl").read_text().splitlines()) == 5


def test_a_round_and_a_time_limit(fedmerge, recorded: Path):
    done = fedmerge("sweep", recorded, "--round", 1, "--limit-seconds", 0.001, "--rows", 2)
    assert done.exit_code == 0, done.output
    assert "the time limit of 0.001 seconds ended it early" in done.stdout
    assert json.loads((recorded / "sweep" / "result.json").read_text())["round"] == 1


def test_adapters(fedmerge, recorded: Path, adapters: list[Path], tmp_path: Path):
    out = tmp_path / "out"
    asked = ("--candidates", TEXT, "--rows", 2, "-o", out)
    done = fedmerge("sweep", "--adapters", *adapters, "--simulation", recorded / "config.toml", *asked)
    assert done.exit_code == 0, done.output
    assert (out / "sweep" / "best" / "adapter_model.safetensors").is_file()


def test_ctrl_c_says_what_is_kept(fedmerge, recorded: Path, monkeypatch: pytest.MonkeyPatch):
    from fedmerge.study.sweep import Sweep

    real = Sweep._told

    def stopping(self, *arguments):
        real(self, *arguments)
        raise KeyboardInterrupt

    monkeypatch.setattr(Sweep, "_told", stopping)
    stopped = fedmerge(
        "sweep", recorded, "--candidates", "ties(density=[0.1, 0.2, 0.3, 0.4, 0.5, 0.6])", "--rows", 2
    )
    assert stopped.exit_code == 130
    assert "candidates are in" in stopped.stderr
    monkeypatch.undo()
    done = fedmerge(
        "sweep", recorded, "--candidates", "ties(density=[0.1, 0.2, 0.3, 0.4, 0.5, 0.6])", "--rows", 2
    )
    assert done.exit_code == 0
    assert "were known from an earlier call" in done.stdout


@pytest.mark.parametrize(
    ("arguments", "sentence"),
    [
        (["RUN", "--candidates", "tise()"], "did you mean 'ties'"),
        (["RUN", "--candidates", "ties(densty=0.1)"], "Did you mean 'density'"),
        (["RUN", "--search", "tpee"], "did you mean 'tpe'"),
        (["RUN", "--search", "tpe", "--trials", "0"], "--trials 0: expected at least 1"),
        (["RUN", "--round", "7"], "round 7 has no deltas; recorded rounds: 1, 2"),
        (["RUN", "--rows", "-3"], "--rows -3: expected 0"),
        (["RUN", "--simulation", "builtin"], "belong to --adapters"),
        (["--adapters", "A", "B"], "--adapters needs --simulation"),
        (["--adapters", "A", "--simulation", "builtin"], "1 adapter given, expected two or more"),
        (["RUN", "--adapters", "A", "B", "--simulation", "builtin"], "is a run's folder: give a run alone"),
        (["RUN", "B"], "expected one run"),
        ([], "expected one run"),
        (["nowhere"], "there is no such folder"),
    ],
)
def test_bad_input_is_one_sentence(fedmerge, recorded: Path, arguments: list[str], sentence: str):
    done = fedmerge("sweep", *(str(recorded) if word == "RUN" else word for word in arguments))
    assert done.exit_code == 1
    assert sentence in done.stderr
    assert not (recorded / "sweep" / "leaderboard.jsonl").exists()


def test_a_run_without_deltas_says_how_to_keep_them(fedmerge, recorded: Path):
    for path in recorded.glob("rounds/*/deltas/*"):
        path.unlink()
    done = fedmerge("sweep", recorded)
    assert done.exit_code == 1
    assert "run.record = true" in done.stderr


def test_an_adapter_of_another_base_is_refused(fedmerge, recorded: Path, adapters: list[Path]):
    from dataclasses import replace

    from fedmerge import load_adapter, save_adapter

    strange = replace(load_adapter(adapters[0]), metadata={"fingerprint": "f" * 64})
    save_adapter(strange, adapters[0])
    done = fedmerge("sweep", "--adapters", *adapters, "--simulation", recorded / "config.toml")
    assert done.exit_code == 1
    assert "trained on the base with fingerprint ffffffffffff" in done.stderr
    assert tomllib.loads((recorded / "config.toml").read_text())


def test_a_bad_text_loses_nothing(fedmerge, recorded: Path):
    fedmerge("sweep", recorded, "--candidates", TEXT, "--rows", 2)
    before = (recorded / "sweep" / "leaderboard.jsonl").read_bytes()
    assert fedmerge("sweep", recorded, "--candidates", "tise()", "--rows", 2).exit_code == 1
    assert (recorded / "sweep" / "leaderboard.jsonl").read_bytes() == before
