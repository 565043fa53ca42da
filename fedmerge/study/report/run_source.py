"""A run's folder, read for a report: what it was asked, what each round did, what came of it."""

from __future__ import annotations

from dataclasses import dataclass, field
from pathlib import Path

from fedmerge.errors import CheckpointError
from fedmerge.study.report.node import Node, read_json, read_lines, read_toml
from fedmerge.study.report.study_sources import Geometry, Sweep, read_geometry, read_sweep

Scalar = str | int | float | bool


@dataclass(frozen=True)
class Candidate:
    """The scores of one adapter: by silo on both splits, and the mean and the worst of what is shown."""

    test: dict[str, float | None]
    validation: dict[str, float | None]
    mean: float | None
    worst: float | None


@dataclass(frozen=True)
class Received:
    """The silos' scores of what they received in a round, on validation rows."""

    mean: float | None
    silos: dict[str, float | None]


@dataclass(frozen=True)
class Round:
    """One round's line of metrics.jsonl.

    Args:
        number: from 1.
        asked: the silos drawn.
        admitted: how many replies were merged.
        refused: (silo, reason).
        missing: silos that did not answer.
        flagged: (silo, what is odd).
        rejected: merges that were taken back, a sentence each.
        received: scores of the round's broadcast; None where no silo scored it.
        shadows: by "rule @ space", the mean of what another merge of the same replies would have scored.
        bytes_up, bytes_down: of all messages.
        seconds: by phase.
        discarded: share of the merged update's energy that the adapter's rank left out.
    """

    number: int
    asked: tuple[str, ...]
    admitted: int
    refused: tuple[tuple[str, str], ...]
    missing: tuple[str, ...]
    flagged: tuple[tuple[str, str], ...]
    rejected: tuple[str, ...]
    received: Received | None
    shadows: dict[str, float | None]
    bytes_up: float
    bytes_down: float
    seconds: dict[str, float | None]
    discarded: float | None


@dataclass(frozen=True)
class Result:
    """result.json."""

    metric: str
    higher: bool
    silos: tuple[str, ...]
    candidates: dict[str, Candidate]
    kept: str
    seed: int
    rule: str
    space: str
    bytes_up: float
    bytes_down: float
    seconds: dict[str, float | None]

    @property
    def split(self) -> str:
        """What the shown scores were measured on: "test", or "validation" where there are no test rows."""
        return "test" if any(scores.test for scores in self.candidates.values()) else "validation"

    def shown(self, scores: Candidate) -> dict[str, float | None]:
        """A candidate's scores by silo, on the split that is shown."""
        return scores.test if self.split == "test" else scores.validation


@dataclass(frozen=True)
class Run:
    """A run's folder. `result` is None where the run did not come to its end."""

    path: Path
    config: dict[str, Scalar]
    environment: dict[str, object] = field(default_factory=dict)
    rounds: tuple[Round, ...] = ()
    result: Result | None = None
    geometry: Geometry | None = None
    sweep: Sweep | None = None

    @property
    def name(self) -> str:
        """What the run is called."""
        return str(self.config.get("run.name") or self.path.name)

    @property
    def seed(self) -> int:
        """Its seed."""
        return int(self.config.get("run.seed", 0))


def read_run(path: Path) -> Run:
    """Read a run's folder.

    Raises:
        CheckpointError: a file that is damaged or missing; the message names it.
    """
    metrics, result = path / "metrics.jsonl", path / "result.json"
    if not metrics.is_file() and not result.is_file():
        raise CheckpointError(f"{path} holds neither metrics.jsonl nor result.json: no round was closed")
    lines = read_lines(metrics) if metrics.is_file() else []
    environment, geometry = path / "environment.json", path / "geometry.json"
    run = Run(
        path=path,
        config=_flat(read_toml(path / "config.toml")),
        environment=_plain(read_json(environment)) if environment.is_file() else {},
        rounds=tuple(_round(line) for line in lines),
        result=_result(read_json(result)) if result.is_file() else None,
        geometry=read_geometry(read_json(geometry)) if geometry.is_file() else None,
        sweep=read_sweep(path / "sweep"),
    )
    if not run.rounds and run.result is None:
        raise CheckpointError(f"{metrics} is empty, and there is no result.json: no round was closed")
    return run


def _flat(node: Node, prefix: str = "") -> dict[str, Scalar]:
    flat: dict[str, Scalar] = {}
    for key, child in node.items().items():
        if isinstance(child.value, dict):
            flat |= _flat(child, f"{prefix}{key}.")
        elif isinstance(child.value, str | int | float | bool):
            flat[prefix + key] = child.value
        else:
            raise CheckpointError(f"{node.file}: {child.place} is {child.value!r}, expected text or a number")
    return flat


def _plain(node: Node) -> dict[str, object]:
    return {key: child.value for key, child in node.items().items()}


def _round(node: Node) -> Round:
    received, merge = node.find("received"), node.find("merge")
    discarded = merge.find("discarded_total") if merge else None
    refused, missing, flagged = (node.find(key) for key in ("refused", "missing", "flagged"))
    seconds, asked, admitted = (node.find(key) for key in ("seconds", "asked", "admitted"))
    return Round(
        number=int(node.at("round").number()),
        asked=asked.texts() if asked else (),
        admitted=len(admitted.items()) if admitted else 0,
        refused=tuple(map(_refusal, refused.entries())) if refused else (),
        missing=missing.texts() if missing else (),
        flagged=tuple((silo, what.text()) for silo, what in flagged.items().items()) if flagged else (),
        rejected=_rejected(node.find("rejected")),
        received=_received(received) if received else None,
        shadows=_shadows(node.find("shadows")),
        bytes_up=_or_zero(node.find("bytes_up")),
        bytes_down=_or_zero(node.find("bytes_down")),
        seconds=seconds.by_name() if seconds else {},
        discarded=discarded.figure() if discarded else None,
    )


def _refusal(node: Node) -> tuple[str, str]:
    return node.at("silo").text(), node.at("reason").text()


def _received(node: Node) -> Received:
    return Received(node.at("mean").figure(), node.at("silos").by_name())


def _shadows(node: Node | None) -> dict[str, float | None]:
    if node is None:
        return {}
    means = {name: scores.find("mean") for name, scores in node.items().items() if scores.value is not None}
    return {name: mean.figure() for name, mean in means.items() if mean is not None}


def _rejected(node: Node | None) -> tuple[str, ...]:
    """Merges that were taken back, in words; a sentence, a record of values, or a list of either."""
    if node is None or not node.value:
        return ()
    if isinstance(node.value, list):
        return tuple(text for entry in node.entries() for text in _rejected(entry))
    if isinstance(node.value, dict):
        return (", ".join(f"{key.replace('_', ' ')} {value}" for key, value in node.value.items()),)
    return ("the merge was taken back" if node.value is True else str(node.value),)


def _or_zero(node: Node | None) -> float:
    return (node.figure() or 0.0) if node else 0.0


def _result(node: Node) -> Result:
    seconds, seed = node.find("seconds"), node.find("seed")
    return Result(
        metric=node.at("metric").text(),
        higher=node.at("higher_is_better").flag(),
        silos=node.at("silos").texts(),
        candidates={name: _candidate(scores) for name, scores in node.at("candidates").items().items()},
        kept=node.at("kept").text(),
        seed=int(seed.number()) if seed else 0,
        rule=node.at("rule").text(),
        space=node.at("space").text(),
        bytes_up=_or_zero(node.find("bytes_up")),
        bytes_down=_or_zero(node.find("bytes_down")),
        seconds=seconds.by_name() if seconds else {},
    )


def _candidate(node: Node) -> Candidate:
    test, validation = node.find("test"), node.find("validation")
    mean, worst = node.find("mean"), node.find("worst")
    return Candidate(
        test=test.by_name() if test else {},
        validation=validation.by_name() if validation else {},
        mean=mean.figure() if mean else None,
        worst=worst.figure() if worst else None,
    )
