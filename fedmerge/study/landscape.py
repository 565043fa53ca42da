"""Scores along lines and on a plane between the adapters of a subject."""

from __future__ import annotations

from collections.abc import Callable, Sequence
from itertools import combinations
from typing import Protocol

from fedmerge.adapters import Adapter, Lora
from fedmerge.adapters.blend import blend
from fedmerge.adapters.connectivity import Ends, Line, Point, measure_line, spread_points
from fedmerge.adapters.plane import Plane, Triangle, laid_out, measure_plane
from fedmerge.study.subject import MERGE, Subject

MOST_PAIRS = 6
"""Pairs whose line is measured: all of four silos; of more the three of lowest and of highest cosine."""

FROM_START = (0.0, 0.1, 1.0)
"""Points from the start to each silo: whether the loss falls, and whether it does so at once."""

BEYOND = 2.0
"""How far the line through the merge goes."""

Pair = tuple[str, str]


class Scorer(Protocol):
    """Scores an adapter on the silos' validation rows: mean loss, mean score, and each silo's loss."""

    metric: str
    """Name of the score."""

    lora: Lora | None
    """Settings whose scaling the silos expect of an adapter."""

    def __call__(self, adapter: Adapter) -> Point:
        """Score it."""
        ...


class Landscape:
    """What is scored, each adapter once.

    Args:
        subject: the adapters.
        scorer: scores them.
        tracked: told what was scored, once for each call of the scorer.
    """

    def __init__(
        self, subject: Subject, scorer: Scorer, tracked: Callable[[str], None] = lambda piece: None
    ) -> None:
        self.subject, self.scorer, self.tracked = subject, scorer, tracked
        self.adapters = subject.trained | ({MERGE: subject.merge} if len(subject.names) > 1 else {})
        self.ends: dict[str, Point] = {}

    def from_start(self) -> tuple[Line, ...]:
        """Lines from the start to each silo."""
        return tuple(self.line((self.subject.start, name), FROM_START) for name in self.subject.names)

    def between(self, pairs: Sequence[Pair], points: int) -> tuple[Line, ...]:
        """Lines between two silos."""
        return tuple(self.line(pair, spread_points(points)) for pair in pairs)

    def through_merge(self, points: int) -> Line | None:
        """The line from the start through the merge and beyond; None of a single adapter."""
        if MERGE not in self.adapters:
            return None
        return self.line((self.subject.start, MERGE), spread_points(points, BEYOND))

    def line(self, names: Pair, at: Sequence[float]) -> Line:
        """One line; its ends are scored once for all lines."""
        one, two = names
        told = f"{one} - {two}"
        known = {0.0: self._end(one), 1.0: self._end(two)}
        ends = Ends(names, self._adapter(one), self.adapters[two], self.scorer.lora)
        return measure_line(ends, at, lambda adapter: self._score(adapter, told), known)

    def plane(self, pair: Pair, steps: int) -> Plane:
        """The loss around the start, two silos and the merge.

        Raises:
            AdapterMismatch: the three lie on a line.
        """
        triangle = self._triangle(pair)
        return measure_plane(triangle, steps, lambda adapter: self._score(adapter, "plane"))

    def check_plane(self, pair: Pair) -> None:
        """Refuse a plane that is none, before anything is scored."""
        laid_out(self._triangle(pair))

    def _triangle(self, pair: Pair) -> Triangle:
        one, two = pair
        names = (self.subject.start, one, two)
        others = {name: adapter for name, adapter in self.adapters.items() if name not in pair}
        return Triangle(
            names, self.subject.origin, self.adapters[one], self.adapters[two], others, self.scorer.lora
        )

    def _adapter(self, name: str) -> Adapter | None:
        return self.subject.origin if name == self.subject.start else self.adapters[name]

    def _end(self, name: str) -> Point:
        if name not in self.ends:
            given = self._adapter(name)
            first = next(iter(self.adapters.values()))
            adapter = (
                blend([first], [0.0], self.scorer.lora)
                if given is None
                else blend([given], [1.0], self.scorer.lora)
            )
            self.ends[name] = self._score(adapter, name)
        return self.ends[name]

    def _score(self, adapter: Adapter, told: str) -> Point:
        point = self.scorer(adapter)
        self.tracked(told)
        return point


def pairs_of(names: Sequence[str], cosines: Sequence[Sequence[float]]) -> list[Pair]:
    """The pairs whose line is measured: all where they are few, else those of lowest and of highest cosine.

    Example:
        >>> pairs_of(("a", "b", "c"), ((1, 0, 0), (0, 1, 0), (0, 0, 1)))
        [('a', 'b'), ('a', 'c'), ('b', 'c')]
    """
    places = list(combinations(range(len(names)), 2))
    if len(places) > MOST_PAIRS:
        ordered = sorted(places, key=lambda pair: cosines[pair[0]][pair[1]])
        chosen = {*ordered[: MOST_PAIRS // 2], *ordered[-(MOST_PAIRS // 2) :]}
        places = [pair for pair in places if pair in chosen]
    return [(names[one], names[two]) for one, two in places]


def widest(names: Sequence[str], cosines: Sequence[Sequence[float]]) -> Pair:
    """The two of lowest cosine.

    Example:
        >>> widest(("a", "b", "c"), ((1, 0.3, 0.2), (0.3, 1, -0.1), (0.2, -0.1, 1)))
        ('b', 'c')
    """
    places = combinations(range(len(names)), 2)
    one, two = min(places, key=lambda pair: cosines[pair[0]][pair[1]])
    return names[one], names[two]


def evaluations(silos: int, points: int, steps: int) -> int:
    """How many adapters a landscape scores.

    Args:
        silos: how many.
        points: on a line between two.
        steps: along each axis of the plane; 0 for no plane.

    Example:
        >>> evaluations(silos=1, points=11, steps=7), evaluations(silos=4, points=5, steps=0)
        (3, 35)
    """
    inner = len(FROM_START) - 2
    if silos == 1:
        return 1 + silos * (1 + inner)
    pairs = min(silos * (silos - 1) // 2, MOST_PAIRS)
    through = len(spread_points(points, BEYOND)) - 2
    return 2 + silos * (1 + inner) + pairs * (points - 2) + through + steps**2
