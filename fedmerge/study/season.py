"""All runs of a comparison at one seed: base and silos are loaded once, and silos' answers shared."""

from __future__ import annotations

import json
import shutil
from collections.abc import Iterator, Mapping, Sequence
from contextlib import ExitStack, contextmanager
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

from fedmerge.config import Config, Flat, Scalar, read_config
from fedmerge.engine.executors import Executor
from fedmerge.engine.local import grid_over, serving
from fedmerge.errors import ConfigError
from fedmerge.server import storage
from fedmerge.server.plan import Plan
from fedmerge.server_app.conduct import conduct
from fedmerge.server_app.scoring import SPLITS, Scoring
from fedmerge.silo.data import load_silos
from fedmerge.study.bench import scope_of
from fedmerge.study.memo import Memo
from fedmerge.study.remembering import Remembering
from fedmerge.study.strategies import REFERENCE, Strategy
from fedmerge.study.tuning import Tuning


@dataclass(frozen=True)
class Question:
    """What is compared.

    Args:
        simulation: its whole run-config, flat.
        strategies: paths or packaged names; "all" stands for every packaged one that fits.
        seeds: each at least 0, no one twice.
        tuning: a knob that is tuned on validation rows before anything is scored on test rows; None for none.
        sets: keys that are set for every strategy alike.
        reference: name of the strategy that all are compared with.
        rows: test rows of each silo that are scored, spread evenly over them; 0 is all.
        space: where every strategy compares deltas, but for those that can't work there; "" leaves each its
            own.
        folder: where all is written; None takes a name made of the simulation's name and content.
    """

    simulation: Flat
    strategies: Sequence[str]
    seeds: Sequence[int] = (0,)
    tuning: Tuning | None = None
    sets: Mapping[str, Scalar] = field(default_factory=dict)
    space: str = ""
    reference: str = REFERENCE
    rows: int = 0
    folder: Path | None = None

    def __post_init__(self) -> None:
        """Check the seeds."""
        if not self.seeds or len(set(self.seeds)) < len(self.seeds) or min(self.seeds) < 0:
            raise ConfigError(f"--seeds {list(self.seeds)}: expected different whole numbers from 0")
        if self.rows < 0:
            raise ConfigError(f"--rows {self.rows}: expected 0 (all) or more")

    @property
    def place(self) -> Path:
        """The folder, absolute."""
        if self.folder is not None:
            return self.folder.expanduser().absolute()
        still: Flat = {"strategy.rule": "fedavg()", "run.seed": 0, "strategy.shadows": ""}
        config = read_config({**self.simulation, **self.sets, **still})
        return Path("runs", f"compare-{config.run.name}-{config.digest[:8]}").absolute()


@dataclass(frozen=True)
class Entry:
    """One strategy's run at one seed.

    Args:
        result: the content of its result.json.
        digests: of the scored adapters, by candidate.
        scope: of the memo's entries.
        labels: that the silos agreed on.
    """

    result: Mapping[str, Any]
    digests: Mapping[str, str]
    scope: str
    labels: tuple[str, ...] = ()


@dataclass
class Season:
    """All runs of one seed: base and silos are loaded once, and answers shared."""

    question: Question
    seed: int
    executor: Remembering
    has_test_rows: bool
    higher_is_better: bool = True

    @classmethod
    @contextmanager
    def opened(
        cls, question: Question, seed: int, memo: Memo, strategies: Sequence[Strategy]
    ) -> Iterator[Season]:
        """Load base and silos."""
        configs = [read_config(each.flat(question.simulation, seed, question.sets)) for each in strategies]
        needs: set[str] = set().union(*(Plan.of(config.strategy).needs for config in configs))
        with ExitStack() as stack:
            inner: Executor = stack.enter_context(serving(configs[0]))
            executor = Remembering(inner, memo, scope_of(configs[0]), tuple(sorted(needs)))
            executor.remembers = not configs[0].silo.lora.private
            tested = any(silo.test for silo in load_silos(configs[0].silo.data).values())
            yield cls(question, seed, executor, tested)

    def run(self, strategy: Strategy, *, with_baselines: bool) -> Entry:
        """The strategy's run, taken from its folder where that is whole."""
        folder = self.question.place / "runs" / f"{strategy.name}-seed{self.seed}"
        flat = strategy.flat(self.question.simulation, self.seed, self.question.sets)
        flat |= {"run.output": str(folder)} | (self._baselines() if with_baselines else {})
        config = read_config(flat)
        known = _known(folder, config, self.executor.scope, self.question.rows)
        if known is not None:
            return known
        shutil.rmtree(folder, ignore_errors=True)  # of another knob, or not whole: all of it is in the memo
        self.executor.digests.clear()
        # Of one round there is nothing to choose from, so that validation rows have no part in it, unless the
        # strategy wants its gate to judge the result by them.
        chosen = (config.run.rounds > 1 and config.run.keep == "best") or config.strategy.gate != "off()"
        splits = SPLITS if chosen or not self.has_test_rows else ("test",)
        scoring = Scoring(splits, self.question.rows)
        result = conduct(config, grid_over(self.executor), scoring=scoring)
        entry = Entry(result, dict(self.executor.digests), self.executor.scope, self.executor.labels)
        about = {
            "digest": config.digest,
            "scope": entry.scope,
            "rows": self.question.rows,
            "digests": entry.digests,
            "labels": list(entry.labels),
        }
        with storage.writing(folder):
            if not config.run.record:
                shutil.rmtree(folder / "rounds", ignore_errors=True)
            storage.write_json(folder / "study.json", about)
        return entry

    def trial(self, strategy: Strategy, tuning: Tuning) -> float | None:
        """The strategy's mean score on validation rows; None where it is no number.

        Args:
            strategy: with the knob at the value that is tried.
            tuning: says after how many rounds, and on how many rows.

        Raises:
            ConfigError: no silo has validation rows.
        """
        folder = self.question.place / "trial"
        flat = strategy.flat(self.question.simulation, self.seed, self.question.sets)
        flat |= {"run.output": str(folder), "run.keep": "last", "run.record": False}
        flat |= {"run.rounds": tuning.rounds} if tuning.rounds else {}
        config = read_config(flat)
        key = f"trial {self.executor.scope} {config.digest} {tuning.rows}"
        known = self.executor.memo.scores(key)
        if known is None:
            shutil.rmtree(folder, ignore_errors=True)
            scoring = Scoring(("validation",), tuning.rows)
            known = _trial_of(conduct(config, grid_over(self.executor), scoring=scoring))
            self.executor.memo.note_scores(key, known)
            shutil.rmtree(folder, ignore_errors=True)
        self.higher_is_better = bool(known["higher_is_better"])
        return float(known["mean"])

    def _baselines(self) -> Flat:
        """What the simulation compares with, and class means where there are classes."""
        names = str(self.question.simulation["run.baselines"])
        if self.question.simulation["task.kind"] == "classification" and "centroids" not in names:
            names = f"{names}, centroids"
        return {"run.baselines": names.strip(", ")}


def _trial_of(result: Mapping[str, Any]) -> dict[str, Any]:
    merged = result["candidates"]["merged"]
    if not merged.get("validation"):
        raise ConfigError(
            "tuning needs validation rows, and no silo has any: set data.validation above 0, or leave out "
            "--tune; test rows are never tuned on"
        )
    return {"mean": merged["mean"], "higher_is_better": result["higher_is_better"]}


def _known(folder: Path, config: Config, scope: str, rows: int) -> Entry | None:
    """What a whole run of this very configuration left, on this very data."""
    try:
        about = json.loads((folder / "study.json").read_text(encoding="utf-8"))
        result = json.loads((folder / "result.json").read_text(encoding="utf-8"))
        same = (about["digest"], about["scope"], about["rows"]) == (config.digest, scope, rows)
        return Entry(result, about["digests"], scope, tuple(about["labels"])) if same else None
    except (OSError, ValueError, KeyError, TypeError):
        return None
