"""Runs that differ in their seed alone are one experiment."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass

from fedmerge.study.report.run_source import Candidate, Result, Run, Scalar
from fedmerge.study.report.seeds import mean, spread

NOT_WHAT = ("run.output", "run.name", "run.record", "run.keep-rounds", "run.seed", "run.trackers", "engine.")
"""Keys that don't say what is computed: a seed is another draw of the same."""

KEPT = "merged, kept"
"""Stands for the candidate that a run kept as its result."""

_MOST_NAMED_KEYS = 3


@dataclass(frozen=True)
class Group:
    """One experiment, run with one seed or several.

    Args:
        label: what tells it from the others of the page.
        runs: by seed, ascending.
    """

    label: str
    runs: tuple[Run, ...]

    @property
    def results(self) -> tuple[Result, ...]:
        """Of the runs that came to their end."""
        return tuple(run.result for run in self.runs if run.result is not None)

    @property
    def metric(self) -> str:
        """The figure that is compared, in words."""
        return self.results[0].metric.replace("_", " ") if self.results else "score"

    @property
    def higher(self) -> bool:
        """Whether more of it is better."""
        return self.results[0].higher if self.results else True

    @property
    def sign(self) -> float:
        """1 where more is better, else -1: differences times it are gains."""
        return 1.0 if self.higher else -1.0

    @property
    def split(self) -> str:
        """What the scores were measured on."""
        return self.results[0].split if self.results else "validation"

    @property
    def silos(self) -> tuple[str, ...]:
        """The silos' names."""
        return self.results[0].silos if self.results else ()

    @property
    def direction(self) -> str:
        """Which direction is better, in words."""
        return "higher is better" if self.higher else "lower is better"

    def candidates(self) -> tuple[str, ...]:
        """Names of all candidates, in reading order; KEPT stands for what each run kept."""
        names = {name for result in self.results for name in result.candidates if name != result.kept}
        kinds = ("base", "centroids", "alone", "shadow", "merged", KEPT, "pooled")
        place = {
            name: kinds.index(head) if (head := name.partition("/")[0]) in kinds else 3 for name in names
        }
        found = sorted(
            names | ({KEPT} if self.results else set()), key=lambda name: (place.get(name, 4), name)
        )
        return tuple(found)

    def means(self, name: str) -> tuple[float | None, ...]:
        """A candidate's mean over silos, a value a seed."""
        return tuple(scores.mean if scores else None for _, scores in self._scores(name))

    def worsts(self, name: str) -> tuple[float | None, ...]:
        """A candidate's worst silo, a value a seed."""
        return tuple(scores.worst if scores else None for _, scores in self._scores(name))

    def mean(self, name: str) -> float | None:
        """A candidate's mean over silos and seeds."""
        return mean(self.means(name))

    def spread(self, name: str) -> float | None:
        """The standard deviation of its mean over seeds."""
        return spread(self.means(name))

    def at(self, name: str, silo: str) -> float | None:
        """A candidate's score at one silo, the mean over seeds."""
        return mean([result.shown(scores).get(silo) for result, scores in self._scores(name) if scores])

    def _scores(self, name: str) -> list[tuple[Result, Candidate | None]]:
        """Each result with the candidate's scores; None where it has none of that name.

        What a run kept is told under that name alone.
        """
        return [
            (result, result.candidates.get(result.kept if name == KEPT else name))
            if name == KEPT or name != result.kept
            else (result, None)
            for result in self.results
        ]


def grouped(runs: Sequence[Run]) -> tuple[Group, ...]:
    """Runs as experiments, in the order given; the same config and seed twice are two experiments."""
    groups: dict[tuple[object, ...], list[Run]] = {}
    for run in runs:
        identity = tuple(sorted(_what(run.config).items()))
        copy = 0
        while any(run.seed == other.seed for other in groups.get((identity, copy), [])):
            copy += 1
        groups.setdefault((identity, copy), []).append(run)
    members = [tuple(sorted(found, key=lambda run: run.seed)) for found in groups.values()]
    return tuple(Group(label, found) for label, found in zip(_labels(members), members, strict=True))


def _what(config: Mapping[str, Scalar]) -> dict[str, Scalar]:
    return {key: value for key, value in config.items() if not key.startswith(NOT_WHAT)}


def _labels(members: Sequence[Sequence[Run]]) -> list[str]:
    """What tells the experiments apart: the keys that differ if they are few, else the folders' names."""
    configs = [_what(found[0].config) for found in members]
    keys = {key for config in configs for key in config}
    differing = sorted(key for key in keys if len({str(config.get(key)) for config in configs}) > 1)
    labels = [found[0].name for found in members]
    if 0 < len(differing) <= _MOST_NAMED_KEYS:
        labels = [", ".join(_setting(key, config.get(key)) for key in differing) for config in configs]
    if len(set(labels)) < len(labels):
        labels = [found[0].path.name for found in members]
    if len(set(labels)) < len(labels):
        labels = [str(found[0].path) for found in members]
    return labels


def _setting(key: str, value: Scalar | None) -> str:
    bare = key.rpartition(".")[2]
    return str(value) if bare in ("rule", "space") else f"{bare} {'' if value is None else value}".strip()
