"""The geometry of fine-tunes, measured: from deltas, and from scores along lines where rows are at hand."""

from __future__ import annotations

from collections.abc import Callable, Mapping
from dataclasses import dataclass, field, replace

from fedmerge.adapters import geometry
from fedmerge.adapters.angles import Geometry
from fedmerge.adapters.compared import compared
from fedmerge.adapters.connectivity import Line
from fedmerge.adapters.figures import Figures
from fedmerge.adapters.findings import sentences
from fedmerge.adapters.lengths import Weights, relative_length, relative_lengths, weight_norms
from fedmerge.adapters.plane import Plane
from fedmerge.adapters.sign_conflict import sign_conflict
from fedmerge.adapters.spectra import spectra
from fedmerge.errors import ConfigError, nearest
from fedmerge.study.landscape import Landscape, Scorer, pairs_of, widest
from fedmerge.study.subject import Subject

DENSITY = 0.2
"""What the authors of TIES keep; published figures of sign conflicts are at this density."""

POINTS = 5


@dataclass(frozen=True)
class Settings:
    """What to measure.

    Args:
        density: of the trim, in (0, 1].
        points: on a line between two silos, ends included, at least 3.
        plane: whether to measure the plane.
        corners: the two silos that span it; None: the two of lowest cosine.
        steps: points along each axis of the plane.

    Raises:
        ConfigError: a value out of range.
    """

    density: float = DENSITY
    points: int = POINTS
    plane: bool = True
    corners: tuple[str, str] | None = None
    steps: int = 5

    def __post_init__(self) -> None:
        if not 0 < self.density <= 1:
            raise ConfigError(f"density is {self.density:g}, expected a share above 0 and up to 1")
        if self.points < 3:
            raise ConfigError(f"{self.points} points on a line, expected 3 or more: its ends and one between")


@dataclass(frozen=True)
class Inspection:
    """What was found.

    Args:
        figures: everything that sentences are made of.
        relative: by module, each update's length by that of the weight it moves; None where there is none.
        plane: None where it was not measured.
        metric: of the scores; "" where nothing was scored.
        how: the merge in words.
    """

    figures: Figures
    relative: Mapping[str, tuple[float, ...] | None] = field(default_factory=dict)
    plane: Plane | None = None
    metric: str = ""
    how: str = ""

    @property
    def lines(self) -> tuple[Line, ...]:
        """All lines measured."""
        merge = self.figures.merge
        return (*self.figures.from_start, *self.figures.between, *([merge] if merge else []))

    @property
    def sentences(self) -> tuple[str, ...]:
        """What the figures say."""
        return sentences(self.figures)


def inspect(
    subject: Subject,
    settings: Settings,
    base: Weights | None = None,
    scorer: Scorer | None = None,
    tracked: Callable[[str], None] = lambda piece: None,
) -> Inspection:
    """Measure everything that can be measured with what is at hand.

    Args:
        subject: the deltas.
        settings: what to measure.
        base: its weights, for relative lengths.
        scorer: of adapters on validation rows; without one nothing is said of losses.
        tracked: told what was scored, once for each adapter scored.

    Raises:
        AdapterMismatch: deltas that do not belong together, or a plane that is none.
        ConfigError: the plane is to be spanned by silos that are not there.
    """
    check_corners(subject, settings)
    compared(subject.deltas, subject.received, subject.names)  # refuses by name what does not belong together
    shape = geometry.compare(subject.deltas, subject.weights, subject.received)
    norms = weight_norms(shape.layers, base) if base else {}
    figures = _without_scores(subject, settings, shape)
    found = Inspection(
        replace(figures, relative=relative_length(shape.layers, norms)),
        relative_lengths(shape.layers, norms),
        how=subject.how,
    )
    return found if scorer is None else _scored(found, settings, Landscape(subject, scorer, tracked))


def _without_scores(subject: Subject, settings: Settings, shape: Geometry) -> Figures:
    figures = Figures(
        names=subject.names,
        geometry=shape,
        spectra=spectra(subject.deltas, subject.received),
        start=subject.start,
        fingerprint=subject.fingerprint,
    )
    if len(subject.names) < 2:
        return figures
    return replace(
        figures,
        before=sign_conflict(subject.deltas, subject.received),
        after=sign_conflict(subject.deltas, subject.received, settings.density),
    )


def _scored(found: Inspection, settings: Settings, landscape: Landscape) -> Inspection:
    names, cosines = found.figures.names, found.figures.geometry.cosines
    spanned = settings.plane and len(names) > 1
    corners = (settings.corners or widest(names, cosines)) if spanned else None
    if corners:
        landscape.check_plane(corners)
    figures = replace(
        found.figures,
        from_start=landscape.from_start(),
        between=landscape.between(pairs_of(names, cosines), settings.points),
        merge=landscape.through_merge(settings.points),
    )
    plane = landscape.plane(corners, settings.steps) if corners else None
    return replace(found, figures=figures, plane=plane, metric=landscape.scorer.metric)


def check_corners(subject: Subject, settings: Settings) -> None:
    """Refuse a plane through silos that are not there.

    Raises:
        ConfigError: names the nearest.
    """
    if settings.corners is None:
        return
    one, two = settings.corners
    for name in settings.corners:
        if name not in subject.names:
            raise ConfigError(f"--plane: no silo {name!r}; {nearest(name, subject.names)}")
    if one == two:
        raise ConfigError(f"--plane: {one!r} is given twice, expected two different silos")
