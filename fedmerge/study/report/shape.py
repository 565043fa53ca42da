"""The geometry of the silos' updates: how alike, how long, where they disagree, what lies between them."""

from __future__ import annotations

from fedmerge.study.report.document import Block, Column, Fold, Heading, Table, Text, listed
from fedmerge.study.report.plots.canvas import Words
from fedmerge.study.report.plots.heat import cosine_map, layer_map
from fedmerge.study.report.plots.landscape import line_plot, plane_plot
from fedmerge.study.report.study_sources import Geometry

_MOST_COLUMNS, _MOST_PAIRS = 40, 20
Row = tuple[float | None, ...]


def shape(geometry: Geometry) -> tuple[Block, ...]:
    """The blocks of one run's geometry."""
    blocks: list[Block] = [Text(sentence) for sentence in geometry.sentences]
    blocks += _cosines(geometry)
    blocks += _layers(geometry)
    blocks += _conflict(geometry)
    return (*blocks, *_landscape(geometry))


def _cosines(geometry: Geometry) -> list[Block]:
    names = geometry.names
    pairs = sorted(
        (value, names[row], names[column])
        for row, entries in enumerate(geometry.cosines)
        for column, value in enumerate(entries[:row])
        if value is not None
    )
    blocks: list[Block] = []
    if pairs:
        (low, *least), (high, *most) = pairs[0], pairs[-1]
        said = f"Least alike: {listed(least)} ({low:.2f}); most alike: {listed(most)} ({high:.2f})."
        words = Words(f"Cosines between the updates. {said}", f"Cosines between the updates. {said}")
        blocks.append(cosine_map(names, geometry.cosines, words))
    if len(names) > _MOST_COLUMNS:
        return [*blocks, Fold("The least and the most alike", (_pairs(pairs),))]
    columns = (Column("update"), *(Column(name, 3) for name in names))
    rows = tuple((name, *row) for name, row in zip(names, geometry.cosines, strict=True))
    table = Table("Cosines between the updates", columns, rows)
    return [*blocks, Fold("All cosines", (table,))]


def _pairs(pairs: list[tuple[float, str, str]]) -> Table:
    """Both ends of a long list of pairs; geometry.json has all of them."""
    ends = pairs if len(pairs) <= 2 * _MOST_PAIRS else [*pairs[:_MOST_PAIRS], *pairs[-_MOST_PAIRS:]]
    rows = tuple((one, other, value) for value, one, other in ends)
    caption = f"The {_MOST_PAIRS} least and the {_MOST_PAIRS} most alike pairs of {len(pairs)}"
    return Table(caption, (Column("update"), Column("and"), Column("cosine", 3)), rows)


def _layers(geometry: Geometry) -> list[Block]:
    if not geometry.layers:
        return []
    relative = any(value is not None for layer in geometry.layers.values() for value in layer.relative)
    what = "Length relative to the base's weight" if relative else "Length"
    values = [layer.relative if relative else layer.length for layer in geometry.layers.values()]
    modules = list(geometry.layers)
    known = [
        (value, module)
        for module, row in zip(modules, values, strict=True)
        for value in row
        if value is not None
    ]
    if not known:
        return []
    largest, where = max(known)
    words = Words(
        f"{what} of each update by module; the longest, {largest:.3g}, is in {where}.",
        f"{what} of each update by module: the darkest is the longest, {largest:.3g} in {where}.",
    )
    ranks = [layer.rank for layer in geometry.layers.values()]
    tables = [_by_module(f"{what} by module", geometry, values, 4)]
    tables += [_by_module("Effective rank by module", geometry, ranks, 2)] if all(ranks) else []
    return [layer_map(modules, geometry.names, values, words), Fold("All modules", tuple(tables))]


def _by_module(caption: str, geometry: Geometry, values: list[Row], digits: int) -> Table:
    """A column an update; of very many updates the least, the mean and the most."""
    if len(geometry.names) <= _MOST_COLUMNS:
        columns = (Column("module"), *(Column(name, digits) for name in geometry.names))
        rows = [(module, *row) for module, row in zip(geometry.layers, values, strict=True)]
        return Table(caption, columns, tuple(rows))
    columns = (Column("module"), *(Column(name, digits) for name in ("least", "mean", "most")))
    known = [[value for value in row if value is not None] for row in values]
    ends = [(min(row), sum(row) / len(row), max(row)) if row else (None,) * 3 for row in known]
    return Table(caption, columns, tuple((m, *row) for m, row in zip(geometry.layers, ends, strict=True)))


def _conflict(geometry: Geometry) -> list[Block]:
    blocks: list[Block] = []
    before, after, density = (geometry.conflict.get(key) for key in ("before", "after", "density"))
    if before is not None and after is not None:
        kept = "" if density is None else f" to a density of {density:g}"
        text = f"Signs disagree in {before:.3f} of the coordinates, and in {after:.3f} after trimming{kept}."
        blocks.append(Text(text))
    if len(geometry.influence) == len(geometry.names):
        rows = tuple(
            sorted(zip(geometry.names, geometry.influence, strict=True), key=lambda row: -(row[1] or 0.0))
        )
        columns = (Column("update"), Column("influence on the mean", 3))
        blocks.append(
            Fold(
                "Influence",
                (Table("Each update's part of the mean update; the parts sum to 1", columns, rows),),
            )
        )
    return blocks


def _landscape(geometry: Geometry) -> list[Block]:
    blocks: list[Block] = []
    if geometry.lines:
        barriers = [
            (line.barrier, f"{line.start} to {line.end}")
            for line in geometry.lines
            if line.barrier is not None
        ]
        said = f"The highest barrier, {max(barriers)[0]:.4f}, is from {max(barriers)[1]}." if barriers else ""
        words = Words(f"Loss along straight lines between adapters. {said}", f"Loss between adapters. {said}")
        rows = tuple((f"{line.start} to {line.end}", line.barrier) for line in geometry.lines)
        table = Table("Loss barriers", (Column("line"), Column("barrier", 4)), rows)
        blocks += [Heading("Between adapters"), line_plot(geometry.lines, words), table]
    if geometry.plane is not None and any(value is not None for row in geometry.plane.loss for value in row):
        losses = [value for row in geometry.plane.loss for value in row if value is not None]
        said = f"Loss from {min(losses):.3f} (palest) to {max(losses):.3f} (darkest)."
        points = listed(list(geometry.plane.points))
        words = Words(f"Loss over the plane through {points}. {said}", f"The plane through {points}. {said}")
        blocks.append(plane_plot(geometry.plane, words))
    return blocks
