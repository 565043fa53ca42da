"""A sweep of a real, small run: what is written, resumed, refused."""

from __future__ import annotations

import json
from pathlib import Path

import pytest
import torch

from fedmerge import load_adapter
from fedmerge.config import read_config, read_toml
from fedmerge.errors import CheckpointError, ConfigError, RuleError
from fedmerge.server import storage
from fedmerge.study.bench import Bench
from fedmerge.study.jobs import job_of_adapters, job_of_run
from fedmerge.study.leaderboard import Line, read_lines
from fedmerge.study.scoring import BenchScorer
from fedmerge.study.sweeping import Asked, sweep

TEXT = "ties(density=[0.2, 0.6]) @ [product(), core()]"


class Noted:
    """A watcher that remembers."""

    def __init__(self) -> None:
        self.total, self.new, self.old = 0, [], []

    def begin(self, total: int) -> None:
        self.total = total

    def line(self, line: Line, *, new: bool) -> None:
        (self.new if new else self.old).append(line)


def test_a_run_is_swept_and_everything_is_written(recorded: Path):
    noted = Noted()
    result = sweep(job_of_run(recorded), Asked((TEXT,)), noted)
    assert (noted.total, len(noted.new), noted.old) == (4, 5, [])
    folder = recorded / "sweep"
    assert json.loads((folder / "result.json").read_text()) == json.loads(storage.to_json(result))
    lines = read_lines(folder / "leaderboard.jsonl")
    assert [str(line.candidate) for line in lines] == [
        "fedavg() @ product()", "ties(density=0.2) @ product()", "ties(density=0.2) @ core()",
        "ties(density=0.6) @ product()", "ties(density=0.6) @ core()",
    ]  # fmt: skip
    assert all(set(line.silos or {}) == {"birds", "rocks", "ships"} for line in lines)
    means = {str(line.candidate): line.mean for line in lines}
    best = min(means, key=means.__getitem__)
    assert result["best"]["candidate"] == best == result["ranking"][0]["candidate"]
    assert result["best"]["test"]["silos"].keys() == {"birds", "rocks", "ships"}
    assert result["best"]["optimistic"] == "the best of 5 on these rows"
    assert result["beside"].keys() == {"base", "kept", "fedavg"}
    assert result["beside"]["fedavg"]["validation"]["mean"] == means["fedavg() @ product()"]
    kept = load_adapter(folder / "best")
    assert (kept.metadata["rule"], kept.metadata["task"]) == (result["best"]["rule"], "causal-lm")


def test_the_scores_are_those_of_the_bench_and_rows_are_spread(recorded: Path):
    job = job_of_run(recorded)
    merged = {str(line): job.material.merged(line) for line in (job.reference,)}
    with Bench(job.config) as bench:
        whole = bench.evaluate(merged, splits=("validation",)).summary(str(job.reference), "validation")
        mine = BenchScorer(bench).now(merged, "validation")[str(job.reference)]
        few = BenchScorer(bench, rows=2).now(merged, "validation")[str(job.reference)]
    assert mine.summary == whole
    assert few.summary is not None
    assert sum(few.counts.values()) < sum(mine.counts.values())


def test_the_run_s_own_merge_is_among_the_candidates(recorded: Path):
    job = job_of_run(recorded, round=1)
    config = read_config(read_toml(recorded / "config.toml"))
    from fedmerge.study.recorded import open_run

    after = open_run(recorded).round(2).received
    mine = job.material.merged(job.reference)
    assert config.strategy.rule == "fedavg()"
    assert all(torch.equal(mine.tensors[name], after.tensors[name]) for name in after.tensors)


def test_a_second_call_computes_what_is_new_only(recorded: Path):
    sweep(job_of_run(recorded), Asked((TEXT,)), Noted())
    noted = Noted()
    result = sweep(job_of_run(recorded), Asked((TEXT, "median()")), noted)
    assert [str(line.candidate) for line in noted.new] == ["median() @ product()"]
    assert (result["candidates"], result["computed"]) == (6, 1)
    other = sweep(job_of_run(recorded), Asked(("median()",), rows=2), Noted())
    assert other["computed"] == 2
    back = sweep(job_of_run(recorded), Asked((TEXT, "median()")), Noted())
    assert back["computed"] == 0


def test_a_search_is_swept(recorded: Path):
    asked = Asked(("ties(density=between(0.1, 1.0), scale=log_between(0.2, 3.0))",), "tpe", trials=6, rows=3)
    first = sweep(job_of_run(recorded), asked, Noted())
    assert first["candidates"] == 7
    assert first["search"] == {"sampler": "tpe", "trials": 6, "seed": 0}
    again = sweep(job_of_run(recorded), asked, Noted())
    assert again["computed"] == 0
    assert [row["candidate"] for row in again["ranking"]] == [row["candidate"] for row in first["ranking"]]


def test_a_worker_s_refusal_is_the_candidate_s_line(recorded: Path, monkeypatch: pytest.MonkeyPatch):
    from fedmerge.study.material import Material

    real = Material.merged

    def misfit(self, candidate):
        merged = real(self, candidate)
        if "0.6" in candidate.rule:
            merged.tensors.pop(sorted(merged.tensors)[0])
        return merged

    monkeypatch.setattr(Material, "merged", misfit)
    result = sweep(job_of_run(recorded), Asked((TEXT,)), Noted())
    failed = {row["candidate"]: row["error"] for row in result["failed"]}
    assert failed.keys() == {"ties(density=0.6) @ product()", "ties(density=0.6) @ core()"}
    assert all("does not fit the base" in error for error in failed.values())
    assert result["scored"] == 3


def test_adapters_from_disk_take_the_same_path(recorded: Path, tmp_path: Path):
    from fedmerge import merge, save_adapter
    from fedmerge.study.recorded import open_run

    deltas = open_run(recorded).round(1).deltas
    models = [str(save_adapter(delta, tmp_path / silo)) for silo, delta in deltas.items()]
    loaded = [load_adapter(model) for model in models]
    config = read_config(read_toml(recorded / "config.toml"))
    seen: list[tuple[str, ...]] = []
    job = job_of_adapters(models, loaded, config, tmp_path / "out", lambda labels: seen.append(tuple(labels)))
    result = sweep(job, Asked(("dare(density=0.5) @ product()",)), Noted())
    assert seen == [()]
    assert result["adapters"] == models
    assert "kept" not in result["beside"]
    kept = load_adapter(tmp_path / "out" / "sweep" / "best")
    mine = merge(loaded, rule=result["best"]["rule"], space="product()", seed=config.run.seed).adapter
    assert all(torch.equal(kept.tensors[name], mine.tensors[name]) for name in mine.tensors)


def test_adapters_of_another_scaling_are_scored_as_they_are(recorded: Path, tmp_path: Path):
    from dataclasses import replace

    job = job_of_run(recorded)
    given = job.material.merged(job.reference)
    assert given.lora is not None
    halved = replace(
        given,
        tensors={n: t / 2 if ".lora_B." in n else t for n, t in given.tensors.items()},
        lora=replace(given.lora, alpha=given.lora.alpha * 2),
    )
    with Bench(job.config) as bench:
        found = BenchScorer(bench).now({"one": given, "other": halved}, "validation")
    assert found["one"].summary == found["other"].summary


def test_one_writer_a_folder(recorded: Path):
    job = job_of_run(recorded)
    job.folder.mkdir()
    with storage.lock(job.folder), pytest.raises(CheckpointError, match="in use by another run"):
        sweep(job, Asked((TEXT,)), Noted())


def test_damaged_deltas_and_other_bases_are_refused(recorded: Path):
    path = next((recorded / "rounds" / "0002" / "deltas").glob("*.safetensors"))
    path.write_bytes(path.read_bytes()[:-1] + b"x")
    with pytest.raises(CheckpointError, match="damaged: its hash"):
        job_of_run(recorded)


def test_what_is_asked_is_checked_before_anything_is_opened():
    with pytest.raises(ConfigError, match="did you mean 'tpe'"):
        Asked(sampler="tpee")
    with pytest.raises(ConfigError, match="--rows -1"):
        Asked(rows=-1)
    with pytest.raises(RuleError, match="is a range, which a search samples"):
        Asked(("ties(density=between(0.1, 0.2))",))
    with pytest.raises(RuleError, match="did you mean 'median'"):
        Asked(("medain()",), "random")
