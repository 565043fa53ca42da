"""What a comparison found, as rows of plain values: compare.json."""

from __future__ import annotations

import math
import platform
import statistics
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from fedmerge.config import read_config
from fedmerge.engine.local import cores
from fedmerge.study.compare import Comparison
from fedmerge.study.paired import Rows, SiloRows, difference, standard_error
from fedmerge.study.remembering import scores_key
from fedmerge.study.season import Entry

BASELINES = {
    "base": "base",
    "centroids": "class centroids",
    "alone": "best single silo",
    "pooled": "pooled training",
}


@dataclass(frozen=True)
class Scored:
    """One row's scores.

    Args:
        candidates: the adapter's name in each run's result, by seed.
        entries: the runs, by seed.
        head: what it was scored under: "" or "centroid".
    """

    candidates: Mapping[int, str]
    entries: Mapping[int, Entry]
    head: str = ""

    def silos(self, seed: int, split: str) -> dict[str, float]:
        """The scores at one seed, by silo."""
        return dict(self.entries[seed].result["candidates"][self.candidates[seed]][split])

    def means(self, split: str) -> dict[int, float]:
        """The mean over silos, by seed."""
        found = {seed: list(self.silos(seed, split).values()) for seed in self.entries}
        return {seed: math.fsum(values) / len(values) for seed, values in found.items()}


def standings(found: Comparison, command: str) -> dict[str, Any]:
    """All rows, best first, with what a reader must know.

    Args:
        found: the runs; the memo must still be open.
        command: that repeats it.
    """
    question = found.question
    first = found.entries[question.reference][question.seeds[0]].result
    higher, silos = bool(first["higher_is_better"]), list(first["silos"])
    kept = first["candidates"][first["kept"]]
    split = "test" if kept["test"] else "validation"
    table = _Table(found, split, higher, silos)
    rows = [table.row(strategy.name, table.merged(strategy.name)) for strategy in found.strategies]
    rows.sort(key=lambda row: -row["mean"] if higher else row["mean"])
    baselines = [table.baseline(kind, label) for kind, label in BASELINES.items()]
    rows += [row for row in baselines if row is not None]
    config = read_config({**question.simulation, **question.sets})
    return {
        "kind": "compare",
        "name": config.run.name,
        "command": command,
        "metric": first["metric"],
        "higher_is_better": higher,
        "split": split,
        "rows_of_each_silo": question.rows or None,
        "seeds": list(question.seeds),
        "silos": silos,
        "reference": question.reference,
        "tuned": question.tuning.knob if question.tuning else None,
        "tried": {name: dict(tried.scores) for name, tried in found.tried.items()},
        "skipped": found.skipped,
        "machine": _machine(),
        "seconds": round(found.seconds, 1),
        "computed": found.computed,
        "recalled": found.recalled,
        "rounds": config.run.rounds,
        "rows": rows,
        "notes": _notes(found, table, rows, config.run.rounds),
    }


@dataclass
class _Table:
    found: Comparison
    split: str
    higher: bool
    silo_names: Sequence[str]

    def merged(self, name: str) -> Scored:
        entries = self.found.entries[name]
        return Scored({seed: str(entry.result["kept"]) for seed, entry in entries.items()}, entries)

    def baseline(self, kind: str, label: str) -> dict[str, Any] | None:
        """A trivial baseline's row; None where the simulation has none."""
        entries = self.found.entries[self.found.question.reference]
        names = {seed: self._baseline_name(kind, entry) for seed, entry in entries.items()}
        present = {seed: name for seed, name in names.items() if name is not None}
        if len(present) < len(entries):
            return None
        scored = Scored(present, entries, "centroid" if kind == "centroids" else "")
        row = self.row(label, scored)
        return row | {"kind": "baseline", "rule": "", "space": "", "knob": None} | _NO_COST

    def _baseline_name(self, kind: str, entry: Entry) -> str | None:
        """Of the silos alone the one with the best mean: chosen by the very scores that it is shown with."""
        candidates = entry.result["candidates"]
        if kind != "alone":
            return kind if kind in candidates and candidates[kind].get(self.split) else None
        alone = {name: row["mean"] for name, row in candidates.items() if name.startswith("alone/")}
        return (max if self.higher else min)(alone, key=alone.__getitem__) if alone else None

    def row(self, name: str, scored: Scored) -> dict[str, Any]:
        by_seed = scored.means(self.split)
        seeds = list(by_seed)
        silos = {
            silo: math.fsum(scored.silos(seed, self.split)[silo] for seed in seeds) / len(seeds)
            for silo in self.silo_names
            if all(silo in scored.silos(seed, self.split) for seed in seeds)
        }
        worst = (min if self.higher else max)(silos, key=silos.__getitem__)
        results = [entry.result for entry in scored.entries.values()]
        tried = self.found.tried.get(name)
        return {
            "name": name,
            "kind": "strategy",
            "rule": str(results[0]["rule"]),
            "space": str(results[0]["space"]),
            "knob": tried.best if tried else None,
            "mean": math.fsum(by_seed.values()) / len(by_seed),
            "spread": statistics.stdev(by_seed.values()) if len(by_seed) > 1 else None,
            "worst": silos[worst],
            "worst_silo": worst,
            "silos": silos,
            "by_seed": list(by_seed.values()),
            "standard_error": None if (rows := self._rows(scored)) is None else standard_error(rows),
            "difference": self._difference(scored, by_seed),
            **_cost(results),
        }

    def _difference(self, scored: Scored, by_seed: Mapping[int, float]) -> dict[str, Any] | None:
        reference = self.merged(self.found.question.reference)
        if scored.candidates == reference.candidates and scored.entries is reference.entries:
            return None
        ours, theirs = self._rows(scored), self._rows(reference)
        both = None if ours is None or theirs is None else (ours, theirs)
        found = difference(
            list(by_seed.values()),
            list(reference.means(self.split).values()),
            both,
            higher_is_better=self.higher,
        )
        return {"mean": found.mean, "low": found.low, "high": found.high, "verdict": found.verdict}

    def _rows(self, scored: Scored) -> Rows | None:
        """The scores row by row, by silo and seed; None where the task tells none."""
        if self.split != "test":
            return None
        rows: dict[str, list[SiloRows]] = {}
        for seed, entry in scored.entries.items():
            digest = entry.digests.get(scored.candidates[seed], entry.digests.get("base", ""))
            labels = tuple(entry.labels)
            for silo in self.silo_names:
                key = scores_key(
                    entry.scope, silo, labels, digest, "test", scored.head, self.found.question.rows
                )
                noted = self.found.memo.scores(key) or {}
                if "outcomes" in noted:
                    rows.setdefault(silo, []).append(SiloRows(noted["outcomes"], noted["sizes"]))
        complete = rows and all(len(seeds) == len(scored.entries) for seeds in rows.values())
        return rows if complete and len(rows) == len(self.silo_names) else None


_NO_COST = {"bytes_up": None, "bytes_down": None, "seconds": None, "merge_seconds": None}


def _cost(results: Sequence[Mapping[str, Any]]) -> dict[str, Any]:
    """Means over seeds: bytes of the rounds, seconds that silos trained for all together, and of merging."""
    rounds = [result["rounds"] for result in results]
    count = len(rounds)
    admitted = [each for run in rounds for r in run for each in r["admitted"].values()]
    silo = [each["metrics"].get("seconds", 0.0) for each in admitted]
    return {
        "bytes_up": sum(r["bytes_up"] for run in rounds for r in run) / count,
        "bytes_down": sum(r["bytes_down"] for run in rounds for r in run) / count,
        "seconds": math.fsum(silo) / count,
        "merge_seconds": math.fsum(r["seconds"].get("merge", 0.0) for run in rounds for r in run) / count,
    }


def _notes(found: Comparison, table: _Table, rows: Sequence[Mapping[str, Any]], rounds: int) -> list[str]:
    seeds, tuning = found.question.seeds, found.question.tuning
    compared = [row for row in rows if row["difference"] is not None]
    known = table._rows(table.merged(found.question.reference)) is not None
    over = [f"{len(seeds)} seeds"] * (len(seeds) > 1) + ["test rows"] * known
    paired = f"to {found.question.reference}, paired by seed{' and test row' * known}"
    notes = [
        f"difference: {paired}, with its 95 % interval over {' and '.join(over)}; a tie where that holds 0"
        if over
        else "one seed, and no scores row by row: nothing is known of chance, so all differences are ties"
    ]
    if len(seeds) == 1 and known:
        notes.append("one seed: how much scores change from seed to seed is not in the intervals")
    if len(compared) > 1:
        notes.append(
            f"of {len(compared)} comparisons with no difference at all, {0.05 * len(compared):.1f} would be "
            "called one by chance"
        )
    if tuning is not None:
        notes += _tuning_notes(found, rounds)
    if any(row["name"] == BASELINES["alone"] for row in rows):
        notes.append(f"{BASELINES['alone']}: at each seed the one with the best mean, chosen by these scores")
    notes += [f"left out: {name}: {reason}" for name, reason in sorted(found.skipped.items())]
    return notes


def _tuning_notes(found: Comparison, rounds: int) -> list[str]:
    tuning = found.question.tuning
    assert tuning is not None
    seed, values = found.question.seeds[0], ", ".join(f"{value:g}" for value in tuning.values)
    how = "" if tuning.rounds in (0, rounds) else f" after round {tuning.rounds}"
    rows = f"{tuning.rows} validation rows of each silo" if tuning.rows else "validation rows"
    notes = [
        f"tuned: {tuning.knob} of each rule by the mean over silos on {rows}{how} at seed {seed}, "
        f"{len(tuning.values)} values each: {values}"
    ]
    fixed = [name for name, tried in found.tried.items() if not tried.scores]
    edge = [name for name, tried in found.tried.items() if tried.at_the_edge]
    notes += [f"not tuned, without such a knob: {', '.join(sorted(fixed))}"] * bool(fixed)
    notes += [f"best at the edge of what was tried, more may be possible: {', '.join(sorted(edge))}"] * bool(
        edge
    )
    return notes


def _machine() -> str:
    """Processor and cores, as far as the system tells."""
    name = platform.processor() or platform.machine()
    about = Path("/proc/cpuinfo")
    lines = about.read_text(encoding="utf-8").splitlines() if about.is_file() else []
    name = next((line.partition(":")[2].strip() for line in lines if line.startswith("model name")), name)
    return f"{name}, {cores()} cores, {platform.system()}, Python {platform.python_version()}"
