"""A sweep from its texts to `result.json`: the bench opened, the folder taken, the outcome told."""

from __future__ import annotations

import json
import time
from collections.abc import Mapping
from dataclasses import dataclass
from typing import Any

from fedmerge.errors import AdapterMismatch, ConfigError
from fedmerge.server import storage
from fedmerge.server.scores import HIGHER_IS_BETTER
from fedmerge.server_app.outcome import task_type
from fedmerge.study.bench import Bench
from fedmerge.study.candidates import Template, expand, parse_templates
from fedmerge.study.defaults import default_candidates, default_search
from fedmerge.study.jobs import Job
from fedmerge.study.leaderboard import Leaderboard, Line, ranked, standard_error, tied
from fedmerge.study.scoring import BenchScorer, Scored
from fedmerge.study.search import Grid, Search, SearchSettings, Source, load_optuna
from fedmerge.study.sweep import BASE, KEPT, Sweep, SweepSettings, Swept, Watcher
from fedmerge.study.winner import Winner

RESULT = "result.json"


@dataclass(frozen=True)
class Asked:
    """What a sweep is asked for.

    Args:
        candidates: texts; none takes the default ones.
        sampler: of a search; "" makes a grid.
        trials: of a search.
        seed: of a search.
        rows: validation rows of each silo that are scored; 0 is all.
        limit_seconds: after which no candidate is begun; 0 is without limit.

    Raises:
        RuleError: a text that can't be read, or a range where there is no search.
        ConfigError: an unknown sampler, Optuna missing, or a number out of range.
    """

    candidates: tuple[str, ...] = ()
    sampler: str = ""
    trials: int = 100
    seed: int = 0
    rows: int = 0
    limit_seconds: float = 0.0

    def __post_init__(self) -> None:
        for flag, value in (("rows", self.rows), ("limit-seconds", self.limit_seconds)):
            if value < 0:
                raise ConfigError(f"--{flag} {value}: expected 0 (no limit) or more")
        if self.sampler:
            self.search(higher_is_better=True)
            load_optuna()
            _ = self.templates
        else:
            expand(self.candidates)

    @property
    def templates(self) -> tuple[Template, ...]:
        """The texts, read."""
        return parse_templates(self.candidates)

    def search(self, *, higher_is_better: bool) -> SearchSettings:
        """The settings of the search."""
        return SearchSettings(self.sampler, self.trials, self.seed, higher_is_better)

    def source(self, job: Job, *, higher_is_better: bool) -> Source:
        """Who says what is merged."""
        situation = job.material.situation
        if not self.sampler:
            return Grid(expand(self.candidates) if self.candidates else default_candidates(situation))
        templates = self.templates or parse_templates(default_search(situation))
        return Search(templates, self.search(higher_is_better=higher_is_better))


def sweep(job: Job, asked: Asked, watcher: Watcher) -> dict[str, Any]:
    """Sweep, and write `leaderboard.jsonl`, `best/` and `result.json` into the job's folder.

    Returns:
        The content of result.json.

    Raises:
        ConfigError: a base or data set that can't be used, no validation rows, or nothing could be scored.
        AdapterMismatch: adapters of another base, or with a head for other labels.
        CheckpointError: another process writes into the folder, or the disk refuses.
        KeyboardInterrupt: with a sentence on what is kept.
    """
    began = time.monotonic()
    with storage.writing(job.folder):
        job.folder.mkdir(parents=True, exist_ok=True)
    with storage.lock(job.folder), Bench(job.config) as bench:
        _check_base(job, bench)
        job.check_labels(bench.labels)
        board = Leaderboard(job.folder, job.key(asked.rows, bench.fingerprint, bench.examples))
        settings = SweepSettings(job.reference, asked.limit_seconds, began)
        source = asked.source(job, higher_is_better=bench.higher_is_better)
        watcher.begin(source.total)
        standing = {BASE: bench.initial} | ({} if job.kept is None else {KEPT: job.kept})
        scorer = BenchScorer(bench, asked.rows)
        try:
            winner = _winner(job, bench)
            swept = Sweep(job.material, scorer, board, winner, settings, standing, watcher, job.tested)
            found = swept.run(source)
        except KeyboardInterrupt:
            raise KeyboardInterrupt(
                f"{len(board.lines)} candidates are in {board.path}; the same command goes on there"
            ) from None
        finally:
            board.close()
        result = result_of(job, asked, found) | {"seconds": round(time.monotonic() - began, 1)}
        with storage.writing(job.folder):
            storage.write_json(job.folder / RESULT, result)
    return result


def result_of(job: Job, asked: Asked, found: Swept) -> dict[str, Any]:
    """What a sweep found, in plain values."""
    best, lines = found.best, ranked(found.lines.values())
    reference = found.lines[job.reference]
    about = {name: _described(name, found) for name in found.validation}
    about["fedavg"] = _line(reference, found.test)
    return {
        "kind": "sweep", **job.about, "folder": str(job.folder), "metric": best.metric,
        "higher_is_better": HIGHER_IS_BETTER.get(best.metric, True), "split": "validation",
        "rows": asked.rows,
        "candidates": len(found.lines), "scored": len(lines), "computed": found.computed,
        "failed": [{"candidate": str(line.candidate), "error": line.error}
                   for line in found.lines.values() if line.mean is None],
        "stopped": found.stopped, "search": _search(asked), "key": best.key,
        "reference": str(job.reference),
        "best": _line(best, found.test) | {"optimistic": f"the best of {len(lines)} on these rows"},
        "tied": [str(line.candidate) for line in lines[1:] if tied(best, line)],
        "beside": about,
        "ranking": [_ranked(line, reference) for line in lines],
        "adapter": str(job.folder / "best"),
    }  # fmt: skip


def _search(asked: Asked) -> dict[str, Any] | None:
    return {"sampler": asked.sampler, "trials": asked.trials, "seed": asked.seed} if asked.sampler else None


def _line(line: Line, test: Mapping[str, Scored]) -> dict[str, Any]:
    """A candidate's scores on both splits."""
    validation = None if line.mean is None else {"mean": line.mean, "worst": line.worst, "silos": line.silos}
    return {
        "candidate": str(line.candidate), "rule": line.candidate.rule, "space": line.candidate.space,
        "validation": validation, "test": _figures(test.get(str(line.candidate))),
    }  # fmt: skip


def _described(name: str, found: Swept) -> dict[str, Any]:
    """The same of an adapter that is no candidate."""
    return {"validation": _figures(found.validation[name]), "test": _figures(found.test.get(name))}


def _figures(scored: Scored | None) -> dict[str, Any] | None:
    if scored is None or scored.summary is None:
        return None
    summary = scored.summary
    return {"mean": summary.mean, "worst": summary.worst, "silos": dict(summary.silos)}


def _ranked(line: Line, reference: Line) -> dict[str, Any]:
    """A line of the ranking, held against the reference."""
    row = {"candidate": str(line.candidate), "mean": line.mean, "worst": line.worst}
    if line.mean is None or reference.mean is None:
        return row | {"difference": None, "error": None}
    return row | {"difference": line.mean - reference.mean, "error": standard_error(line, reference)}


def _winner(job: Job, bench: Bench) -> Winner:
    config = job.config
    metadata = {
        "base": config.silo.base.model,
        "fingerprint": bench.fingerprint,
        "task": config.silo.task.kind,
        "labels": json.dumps(bench.labels),
    }
    return Winner(job.folder, config.silo.base.model, task_type(config), metadata)


def _check_base(job: Job, bench: Bench) -> None:
    """Refuse a base that is no longer the one of the run: its deltas belong to no other."""
    trained_on = job.kept.metadata.get("fingerprint", "") if job.kept else ""
    if trained_on not in ("", bench.fingerprint):
        raise AdapterMismatch(
            f"{job.about['run']}: the run's base had the fingerprint {trained_on[:12]}, but base.model = "
            f"{job.config.silo.base.model!r} has {bench.fingerprint[:12]}"
        )
