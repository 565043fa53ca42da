"""From a run's folder, or from adapters on disk, to all that a sweep of them needs."""

from __future__ import annotations

import hashlib
import json
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

from fedmerge.adapters import Adapter
from fedmerge.adapters.checks import check_together
from fedmerge.adapters.identity import content_names
from fedmerge.adapters.spaces import parse_space
from fedmerge.config import Config
from fedmerge.errors import AdapterMismatch
from fedmerge.server.scores import Summary
from fedmerge.study.candidates import DEFAULT_SPACE, Candidate
from fedmerge.study.material import Material
from fedmerge.study.recorded import RecordedRun, open_run
from fedmerge.study.scoring import Scored
from fedmerge.study.sweep import BASE, KEPT
from fedmerge.wire.files import load_adapter

FOLDER = "sweep"
SCORED_BY = ("base.", "task.", "lora.", "data.", "train.")
"""Tables of the run-config that a score depends on, beside the adapter."""


@dataclass(frozen=True)
class Job:
    """What is swept.

    Args:
        about: what it is called in the results: the run's folder, or the adapters.
        config: base, data and task that candidates are scored with.
        material: what is merged.
        folder: that the sweep writes into.
        kept: the run's own result; None for adapters from disk.
        tested: what the run measured of the base and of its result on all test rows.
        check_labels: refuses labels that do not fit the adapters.
    """

    about: Mapping[str, object]
    config: Config
    material: Material
    folder: Path
    kept: Adapter | None = None
    tested: Mapping[str, Scored] = field(default_factory=dict)
    check_labels: Callable[[Sequence[str]], None] = lambda _: None

    @property
    def reference(self) -> Candidate:
        """The plain mean, in the space of the run."""
        apart = self.material.received is None
        space = DEFAULT_SPACE if apart else str(parse_space(self.config.strategy.space))
        return Candidate("fedavg()", space)

    def key(self, rows: int, fingerprint: str, examples: Mapping[str, int]) -> str:
        """A hash of the setting: of all that a candidate's score depends on.

        Args:
            rows: validation rows of each silo that are scored; 0 for all.
            fingerprint: of the base.
            examples: training rows of each silo.
        """
        flat = {key: value for key, value in self.config.flat.items() if key.startswith(SCORED_BY)}
        decisive = {
            "material": self.material.digest, "config": flat, "seed": self.config.silo.data.seed,
            "rows": rows, "fingerprint": fingerprint, "examples": dict(examples),
        }  # fmt: skip
        return hashlib.sha256(json.dumps(decisive, sort_keys=True).encode()).hexdigest()


def job_of_run(path: Path, round: int | None = None) -> Job:
    """The sweep of a round that a run recorded.

    Args:
        path: the run's folder.
        round: which one; None takes the last.

    Raises:
        CheckpointError: no run, no recorded deltas, no such round, or files that are damaged.
    """
    run = open_run(path)
    material = material_of(run, round)
    return Job(
        about={"run": str(run.path), "round": material.round},
        config=run.config,
        material=material,
        folder=run.path / FOLDER,
        kept=load_adapter(run.path / "adapter", fetch=False),
        tested=_tested(run.result),
    )


def _tested(result: Mapping[str, Any]) -> dict[str, Scored]:
    """Scores on test rows that stand in a run's result."""
    rows = {BASE: result["candidates"].get(BASE), KEPT: result["candidates"].get(result["kept"])}
    return {
        name: Scored(Summary(result["metric"], row["test"], row["mean"], row["pooled"], row["worst"]))
        for name, row in rows.items()
        if row and row.get("test")
    }


def job_of_adapters(
    models: Sequence[str],
    adapters: Sequence[Adapter],
    config: Config,
    folder: Path,
    check_labels: Callable[[Sequence[str]], None],
) -> Job:
    """The sweep of adapters that lie on disk and never saw a federation.

    Masks of random rules go by the adapters' contents, as in `fedmerge merge`, which gives the same merge for
    the same rule, space and seed.

    Args:
        models: what the adapters are called.
        adapters: as loaded; none of them received anything.
        config: of the simulation whose rows they are scored on.
        folder: that `sweep/` is written into.
        check_labels: refuses labels that do not fit the adapters.

    Raises:
        AdapterMismatch: they do not belong together.
    """
    check_together(None, dict(zip(models, adapters, strict=True)), mixed_ranks=True)
    named = dict(sorted(zip(content_names(adapters), adapters, strict=True)))
    if len(named) < len(adapters):
        raise AdapterMismatch(f"of {', '.join(models)} two hold the same values; give each adapter once")
    return Job(
        about={"adapters": list(models)},
        config=config,
        material=Material(named, dict.fromkeys(named, 1.0), seed=config.run.seed),
        folder=folder / FOLDER,
        check_labels=check_labels,
    )


def material_of(run: RecordedRun, round: int | None = None) -> Material:
    """A round's deltas, as the run merged them."""
    recorded = run.round(round)
    return Material(
        recorded.deltas,
        recorded.weights,
        recorded.received,
        recorded.statistics,
        run.config.run.seed,
        recorded.number,
        run.config.silo.train.device,
    )
