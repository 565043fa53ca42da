"""What an inspection found as plain values: the content of `geometry.json`."""

from __future__ import annotations

from typing import Any

from fedmerge.adapters.connectivity import Line
from fedmerge.adapters.plane import Plane
from fedmerge.adapters.sign_conflict import Conflict
from fedmerge.study.inspection import Inspection

FILE = "geometry.json"


def as_values(found: Inspection) -> dict[str, Any]:
    """An inspection as what JSON knows; lists by silo are in the order of `names`.

    Returns:
        `names`, `in_products`, `norms`, `relative`, `layers` (by module `length`, `relative`, `rank` and
        `energy`, the last three None where there is nothing to measure), `cosines`, `influence`, `leader`,
        `conflict`, `merge` (in words), `lines`, `plane` and `sentences`.
    """
    figures, shape = found.figures, found.figures.geometry
    return {
        "names": list(figures.names),
        "start": figures.start,
        "fingerprint": figures.fingerprint,
        "in_products": shape.in_products,
        "norms": list(shape.norms),
        "relative": None if figures.relative is None else list(figures.relative),
        "layers": {name: _layer(found, name) for name in shape.layers},
        "cosines": [list(row) for row in shape.cosines],
        "influence": list(shape.influence),
        "leader": None if shape.leader is None else figures.names[shape.leader],
        "conflict": _conflict(figures.before, figures.after),
        "merge": found.how,
        "lines": [_line(line, found.metric) for line in found.lines],
        "plane": None if found.plane is None else _plane(found.plane),
        "sentences": list(found.sentences),
    }


def _layer(found: Inspection, name: str) -> dict[str, Any]:
    relative, spectra = found.relative.get(name), found.figures.spectra.get(name)
    return {
        "length": list(found.figures.geometry.layers[name]),
        "relative": None if relative is None else list(relative),
        "rank": None if spectra is None else [spectrum.effective_rank for spectrum in spectra],
        "energy": None if spectra is None else [spectrum.energy(1) for spectrum in spectra],
    }


def _conflict(before: Conflict | None, after: Conflict | None) -> dict[str, float] | None:
    if before is None or after is None:
        return None
    return {
        "before": before.against,
        "after": after.against,
        "density": after.density,
        "chance_before": before.chance,
        "chance_after": after.chance,
        "minority_before": before.minority,
        "minority_after": after.minority,
    }


def _line(line: Line, metric: str) -> dict[str, Any]:
    return {
        "from": line.names[0],
        "to": line.names[1],
        "at": list(line.at),
        "loss": list(line.losses),
        "score": [point.score for point in line.points],
        "metric": metric,
        "barrier": line.barrier,
    }


def _plane(plane: Plane) -> dict[str, Any]:
    return {
        "corners": list(plane.corners),
        "x": list(plane.x),
        "y": list(plane.y),
        "loss": [list(row) for row in plane.losses],
        "points": {name: list(place) for name, place in plane.points.items()},
        "distances": dict(plane.distances),
    }
