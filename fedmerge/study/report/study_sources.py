"""What studies write, read for a report: a comparison, a sweep, a geometry."""

from __future__ import annotations

from dataclasses import dataclass
from pathlib import Path

from fedmerge.errors import CheckpointError
from fedmerge.study.report.node import Node, read_json, read_lines

Grid = tuple[tuple[float | None, ...], ...]
VERDICTS = ("better", "worse", "tie")


@dataclass(frozen=True)
class Difference:
    """A paired difference to the reference, with its interval."""

    mean: float
    low: float | None
    high: float | None
    verdict: str


@dataclass(frozen=True)
class Compared:
    """One strategy or baseline of a comparison."""

    name: str
    kind: str
    mean: float | None
    spread: float | None
    worst: float | None
    worst_silo: str
    silos: dict[str, float | None]
    by_seed: tuple[float | None, ...]
    bytes_up: float | None
    bytes_down: float | None
    seconds: float | None
    difference: Difference | None
    knob: float | None = None


@dataclass(frozen=True)
class Comparison:
    """compare.json."""

    path: Path
    name: str
    command: str
    metric: str
    higher: bool
    split: str
    seeds: tuple[float | None, ...]
    silos: tuple[str, ...]
    reference: str
    tuned: str
    machine: str
    seconds: float | None
    rows: tuple[Compared, ...]
    notes: tuple[str, ...]


@dataclass(frozen=True)
class Swept:
    """One candidate of a sweep."""

    name: str
    mean: float | None
    worst: float | None
    split: str
    metric: str
    seconds: float | None
    error: str


@dataclass(frozen=True)
class Sweep:
    """A sweep: its candidates, the best one's name, and means on test rows of it and others."""

    candidates: tuple[Swept, ...]
    best: str
    test: dict[str, float | None]


@dataclass(frozen=True)
class Layer:
    """One module of each update: (clients,) each; `relative` may be absent."""

    length: tuple[float | None, ...]
    relative: tuple[float | None, ...]
    rank: tuple[float | None, ...]


@dataclass(frozen=True)
class Line:
    """Loss and score between two adapters."""

    start: str
    end: str
    at: tuple[float | None, ...]
    loss: tuple[float | None, ...]
    barrier: float | None


@dataclass(frozen=True)
class Plane:
    """The loss over a plane through three adapters: `loss` is (len(y), len(x))."""

    x: tuple[float | None, ...]
    y: tuple[float | None, ...]
    loss: Grid
    points: dict[str, tuple[float | None, ...]]


@dataclass(frozen=True)
class Geometry:
    """geometry.json."""

    names: tuple[str, ...]
    layers: dict[str, Layer]
    cosines: Grid
    influence: tuple[float | None, ...]
    conflict: dict[str, float | None]
    lines: tuple[Line, ...]
    plane: Plane | None
    sentences: tuple[str, ...]


def read_comparison(path: Path) -> Comparison:
    """Read a comparison's compare.json.

    Raises:
        CheckpointError: damaged; the message names the place.
    """
    node = read_json(path)
    if node.at("kind").text() != "compare":
        raise CheckpointError(f"{path}: kind is {node.at('kind').value!r}, expected 'compare'")
    tuned, machine, notes = (node.find(key) for key in ("tuned", "machine", "notes"))
    return Comparison(
        path=path.parent,
        name=node.at("name").text(),
        command=node.at("command").text(),
        metric=node.at("metric").text(),
        higher=node.at("higher_is_better").flag(),
        split=node.at("split").text(),
        seeds=node.at("seeds").figures(),
        silos=node.at("silos").texts(),
        reference=node.at("reference").text(),
        tuned=tuned.text() if tuned else "",
        machine=machine.text() if machine else "",
        seconds=_figure(node, "seconds"),
        rows=tuple(_compared(row) for row in node.at("rows").entries()),
        notes=notes.texts() if notes else (),
    )


def _compared(node: Node) -> Compared:
    worst_silo, silos, by_seed = (node.find(key) for key in ("worst_silo", "silos", "by_seed"))
    difference = node.find("difference")
    return Compared(
        name=node.at("name").text(),
        kind=node.at("kind").text(),
        mean=node.at("mean").figure(),
        spread=_figure(node, "spread"),
        worst=_figure(node, "worst"),
        worst_silo=worst_silo.text() if worst_silo else "",
        silos=silos.by_name() if silos else {},
        by_seed=by_seed.figures() if by_seed else (),
        bytes_up=_figure(node, "bytes_up"),
        bytes_down=_figure(node, "bytes_down"),
        seconds=_figure(node, "seconds"),
        difference=_difference(difference) if difference else None,
        knob=_figure(node, "knob"),
    )


def _difference(node: Node) -> Difference:
    verdict = node.at("verdict").text()
    if verdict not in VERDICTS:
        raise CheckpointError(f"{node.file}: {node.place}.verdict is {verdict!r}, expected one of {VERDICTS}")
    return Difference(node.at("mean").number(), _figure(node, "low"), _figure(node, "high"), verdict)


def read_sweep(folder: Path) -> Sweep | None:
    """Read the sweep in a run's folder; None where there is none.

    Raises:
        CheckpointError: damaged; the message names the file.
    """
    board, result = folder / "leaderboard.jsonl", folder / "result.json"
    if not board.is_file():
        return None
    newest = {line.name: line for line in map(_swept, read_lines(board))}
    if not result.is_file():
        return Sweep(tuple(newest.values()), "", {})
    found = read_json(result)
    best, beside = found.at("best"), found.find("beside")
    name = best.at("candidate").text()
    test = {other: _test_mean(scores) for other, scores in (beside.items() if beside else {}).items()}
    return Sweep(tuple(newest.values()), name, test | {name: _test_mean(best)})


def _swept(node: Node) -> Swept:
    error, split, metric = (node.find(key) for key in ("error", "split", "metric"))
    return Swept(
        name=node.at("candidate").text(),
        mean=_figure(node, "mean"),
        worst=_figure(node, "worst"),
        split=split.text() if split else "validation",
        metric=metric.text() if metric else "",
        seconds=_figure(node, "seconds"),
        error=str(error.value) if error else "",
    )


def _test_mean(node: Node) -> float | None:
    test = node.find("test")
    return _figure(test, "mean") if test else None


def read_geometry(node: Node) -> Geometry:
    """Read a run's geometry.json."""
    conflict, lines, plane, sentences = (
        node.find(key) for key in ("conflict", "lines", "plane", "sentences")
    )
    layers, influence = node.find("layers"), node.find("influence")
    names, cosines = node.at("names").texts(), tuple(row.figures() for row in node.at("cosines").entries())
    if len(cosines) != len(names) or any(len(row) != len(names) for row in cosines):
        raise CheckpointError(f"{node.file}: cosines are no square of the {len(names)} names")
    for layer in (layers.items() if layers else {}).values():
        for key in ("length", "relative", "rank"):
            values = layer.find(key)
            if values is not None and len(values.entries()) != len(names):
                raise CheckpointError(
                    f"{node.file}: {values.place} is not one value for each of {len(names)} names"
                )
    return Geometry(
        names=names,
        layers={name: _layer(layer) for name, layer in layers.items().items()} if layers else {},
        cosines=cosines,
        influence=influence.figures() if influence else (),
        conflict=conflict.by_name() if conflict else {},
        lines=tuple(_line(line) for line in lines.entries()) if lines else (),
        plane=_plane(plane) if plane else None,
        sentences=sentences.texts() if sentences else (),
    )


def _layer(node: Node) -> Layer:
    values = (node.find(key) for key in ("length", "relative", "rank"))
    return Layer(*(value.figures() if value else () for value in values))


def _line(node: Node) -> Line:
    at, loss = node.at("at").figures(), node.at("loss").figures()
    if len(at) != len(loss):
        raise CheckpointError(
            f"{node.file}: {node.place} has {len(at)} places and {len(loss)} losses, expected as many"
        )
    return Line(node.at("from").text(), node.at("to").text(), at, loss, _figure(node, "barrier"))


def _plane(node: Node) -> Plane:
    x, y = node.at("x").figures(), node.at("y").figures()
    loss = tuple(row.figures() for row in node.at("loss").entries())
    if len(loss) != len(y) or any(len(row) != len(x) for row in loss):
        raise CheckpointError(f"{node.file}: {node.place}.loss is no grid of {len(y)} rows of {len(x)}")
    points = {name: point.figures() for name, point in node.at("points").items().items()}
    return Plane(x, y, loss, points)


def _figure(node: Node, key: str) -> float | None:
    found = node.find(key)
    return found.figure() if found else None
