"""The lines of a sweep: appended one by one, read again by the next call, ranked.

A line stands for one candidate on one setting: which deltas, which base, which rows, which seed. Its key is a
hash of all of that, so that a line is only ever taken for what it says.
"""

from __future__ import annotations

import json
import math
from collections.abc import Iterable, Mapping
from dataclasses import asdict, dataclass
from pathlib import Path
from typing import Any, TextIO

import torch

from fedmerge.server import storage
from fedmerge.server.scores import HIGHER_IS_BETTER
from fedmerge.study.candidates import Candidate
from fedmerge.study.scoring import Scored

FILE = "leaderboard.jsonl"
SPLIT = "validation"


@dataclass(frozen=True)
class Line:
    """One candidate, scored or failed.

    Args:
        candidate: the merge.
        key: hash of the setting that it was scored in.
        metric: what was measured.
        mean: over silos, each counting alike; None where the candidate failed.
        worst: of the silos.
        silos: the score at each.
        counts: what each silo's score is over: rows, or bytes of text.
        seconds: of merging it, and its part of a scoring.
        error: why there is no score, or "".
        passing: whether the failure may not come again (out of memory, say), so that a later call tries anew.
    """

    candidate: Candidate
    key: str
    metric: str = ""
    mean: float | None = None
    worst: float | None = None
    silos: Mapping[str, float] | None = None
    counts: Mapping[str, float] | None = None
    seconds: float = 0.0
    error: str = ""
    passing: bool = False

    @classmethod
    def scored(cls, candidate: Candidate, key: str, found: Scored, seconds: float) -> Line:
        """The line of what the silos measured."""
        if found.summary is None:
            error = found.error or "no silo gave a score"
            return cls(candidate, key, seconds=round(seconds, 4), error=error, passing=found.passing)
        summary = found.summary
        return cls(
            candidate, key, summary.metric, summary.mean, summary.worst, dict(summary.silos),
            dict(found.counts), round(seconds, 4),
        )  # fmt: skip

    @classmethod
    def failed(cls, candidate: Candidate, key: str, error: Exception) -> Line:
        """The line of a merge that failed."""
        passing = isinstance(error, MemoryError | torch.OutOfMemoryError) or "memory" in str(error).lower()
        return cls(candidate, key, error=f"{type(error).__name__}: {error}", passing=passing)

    def to_json(self) -> dict[str, Any]:
        """The line as it is written."""
        values = asdict(self) | {
            "candidate": str(self.candidate),
            "rule": self.candidate.rule,
            "space": self.candidate.space,
            "split": SPLIT,
        }
        unsaid = {"error", "passing"} if not self.error else {"mean", "worst", "silos", "counts"}
        return {name: value for name, value in values.items() if name not in unsaid}

    @classmethod
    def from_json(cls, values: Mapping[str, Any]) -> Line:
        """Read a line; KeyError, TypeError or ValueError where it is none."""
        silos, counts = (
            None if values.get(name) is None else {str(k): float(v) for k, v in values[name].items()}
            for name in ("silos", "counts")
        )
        mean, worst = (
            None if values.get(name) is None else float(values[name]) for name in ("mean", "worst")
        )
        if (mean is None or not silos) and not values.get("error"):
            raise ValueError("neither a score nor an error")
        candidate = Candidate(str(values["rule"]), str(values["space"]))
        return cls(
            candidate, str(values["key"]), str(values["metric"]), mean, worst, silos, counts,
            float(values.get("seconds", 0.0)), str(values.get("error", "")), bool(values.get("passing")),
        )  # fmt: skip


class Leaderboard:
    """The file of a sweep's lines, of one setting; those of another lie beside it under their key.

    Args:
        folder: of the sweep.
        key: of the setting.

    Raises:
        CheckpointError: the folder can't be written.
    """

    def __init__(self, folder: Path, key: str) -> None:
        """Open the file, and read what an earlier call left."""
        self.path = folder / FILE
        self.key = key
        with storage.writing(self.path):
            _take_place(self.path, key)
            _cut_torn_line(self.path)
            self._lines = {line.candidate: line for line in read_lines(self.path) if line.key == key}
            self._file: TextIO = self.path.open("a", encoding="utf-8")

    @property
    def lines(self) -> list[Line]:
        """The newest line of each candidate, in the order written."""
        return list(self._lines.values())

    def known(self, candidate: Candidate) -> Line | None:
        """A candidate's line; None where it is still to be computed, for the first time or anew."""
        line = self._lines.get(candidate)
        return None if line is None or line.passing else line

    def add(self, line: Line) -> None:
        """Append a line; it is on the disk when this returns.

        Raises:
            CheckpointError: the disk refuses.
        """
        with storage.writing(self.path):
            storage.append_line(self._file, storage.to_json(line.to_json()))
        self._lines[line.candidate] = line

    def close(self) -> None:
        """Let go of the file."""
        self._file.close()


def read_lines(path: Path) -> list[Line]:
    """The lines of a leaderboard; what can't be read, as a line that a crash tore, is left out."""
    if not path.is_file():
        return []
    found = (_read(text) for text in path.read_text(encoding="utf-8", errors="replace").splitlines())
    return [line for line in found if line is not None]


def ranked(lines: Iterable[Line]) -> list[Line]:
    """The scored lines, best mean first; of equals the one that was written first."""
    scored = [(line.mean, line) for line in lines if line.mean is not None]
    return [line for _, line in sorted(scored, key=lambda pair: -pair[0] if _higher(pair[1]) else pair[0])]


def tied(best: Line, other: Line) -> bool | None:
    """Whether another candidate lies within one standard error of the best; None where no error is known.

    The error is that of the difference: over silos where there are several, from the silos' differences; with
    one silo, of an accuracy, from its rows. The silos' own level drops out of a difference, so that the error
    is far smaller than that of a single mean.

    Example:
        >>> one = Line(Candidate("fedavg()", "product()"), "", "loss", 1.0, 1.1, {"a": 0.9, "b": 1.1})
        >>> two = Line(Candidate("median()", "product()"), "", "loss", 1.1, 1.4, {"a": 0.8, "b": 1.4})
        >>> tied(one, two)
        True
    """
    if not best.silos or not other.silos or best.mean is None or other.mean is None:
        return None
    error = standard_error(best, other)
    return None if error is None else abs(best.mean - other.mean) <= error


def standard_error(one: Line, two: Line) -> float | None:
    """The standard error of the difference between two lines' means; None where it can't be known."""
    assert one.silos is not None and two.silos is not None
    differences = [one.silos[silo] - two.silos[silo] for silo in one.silos if silo in two.silos]
    count = len(differences)
    if count > 1:
        mean = math.fsum(differences) / count
        variance = math.fsum((value - mean) ** 2 for value in differences) / (count - 1)
        return math.sqrt(variance / count)
    rows = math.fsum((one.counts or {}).values())
    if one.metric != "accuracy" or not rows or one.mean is None or two.mean is None:
        return None
    return math.sqrt((one.mean * (1 - one.mean) + two.mean * (1 - two.mean)) / rows)


def _higher(line: Line) -> bool:
    return HIGHER_IS_BETTER.get(line.metric, True)


def _read(text: str) -> Line | None:
    try:
        values = json.loads(text)
        return Line.from_json(values)
    except (ValueError, KeyError, TypeError, AttributeError):
        return None


def _take_place(path: Path, key: str) -> None:
    """Put another setting's lines aside, and take out again those of this one."""
    path.parent.mkdir(parents=True, exist_ok=True)
    lines = read_lines(path)
    if lines and lines[0].key != key:
        path.rename(_aside(path, lines[0].key))
    if not path.exists() and _aside(path, key).is_file():
        _aside(path, key).rename(path)


def _aside(path: Path, key: str) -> Path:
    return path.with_name(f"{path.stem}-{key[:12]}{path.suffix}")


def _cut_torn_line(path: Path) -> None:
    """End the file with a whole line, so that the next one begins on its own."""
    if not path.is_file():
        return
    data = path.read_bytes()
    rest = data.rpartition(b"\n")[2]
    with path.open("r+b") as file:
        if rest and _read(rest.decode("utf-8", errors="replace")) is None:
            file.truncate(len(data) - len(rest))
        elif rest:
            file.seek(len(data))
            file.write(b"\n")
