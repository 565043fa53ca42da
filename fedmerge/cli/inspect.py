"""`fedmerge inspect`: how the deltas of a run, or adapters on disk, lie to each other and to their base."""

from __future__ import annotations

from pathlib import Path
from typing import TYPE_CHECKING, Annotated

import typer

from fedmerge.cli import recipe
from fedmerge.cli.manner import Outcome, plain
from fedmerge.cli.options import NO_SETS, Sets
from fedmerge.errors import ConfigError

if TYPE_CHECKING:
    from fedmerge.study.cases import Case
    from fedmerge.study.inspection import Inspection, Settings


def inspect(
    models: Annotated[
        list[str],
        typer.Argument(help="A run's folder, or adapters: folders or Hub ids.", metavar="RUN|ADAPTER..."),
    ],
    *,
    simulation: Annotated[
        str,
        typer.Option(help="Score adapters on the validation rows of this simulation.", metavar="SIM.toml"),
    ] = "",
    sets: Sets = NO_SETS,
    base: Annotated[
        str, typer.Option(help="The adapters' base, for relative lengths; a simulation names its own.")
    ] = "",
    round: Annotated[int, typer.Option(min=0, help="Of the run; 0: the last one recorded.")] = 0,
    density: Annotated[float, typer.Option(help="Share of entries that the trim keeps.")] = 0.2,
    points: Annotated[int, typer.Option(help="Points on the line between two silos.")] = 5,
    plane: Annotated[
        str,
        typer.Option(
            help="The two silos that span the plane; default: those of lowest cosine.", metavar="A,B"
        ),
    ] = "",
    no_plane: Annotated[bool, typer.Option("--no-plane", help="Leave out the plane.")] = False,
    no_scores: Annotated[
        bool, typer.Option("--no-scores", help="Of a run: score nothing, look at deltas.")
    ] = False,
    output: Annotated[
        Path | None,
        typer.Option("-o", "--output", help="File for the figures (JSON). Of a run: its geometry.json."),
    ] = None,
) -> Outcome:
    """Measure lengths, angles, sign conflicts, ranks; with rows at hand, losses between the silos."""
    corners = parse_corners(plane)
    if plane and no_plane:
        raise ConfigError("--plane and --no-plane contradict each other")
    is_run = check_kind(models)
    if is_run and (simulation or sets or base):
        raise ConfigError("--simulation, --set and --base are for adapters; a run brings its own")
    if not is_run and (round or no_scores):
        raise ConfigError(
            "--round and --no-scores are for a run; adapters are scored where --simulation is given"
        )
    from fedmerge.study.cases import of_adapters, of_run
    from fedmerge.study.inspection import Settings, check_corners

    settings = Settings(density=density, points=points, plane=not no_plane, corners=corners)
    if is_run:
        case = of_run(models[0], round, output, scored=not no_scores)
    else:
        if sets and not simulation:
            raise ConfigError("--set changes a simulation, and no --simulation is given")
        if base and simulation:
            raise ConfigError("--base and --simulation: the simulation names the base already")
        case = of_adapters(models, recipe.read(simulation, "", sets) if simulation else None, base, output)
    check_corners(case.subject, settings)
    return told(case, measure(case, settings))


def parse_corners(text: str) -> tuple[str, str] | None:
    """The two silos of `--plane`.

    Raises:
        ConfigError: not two names.

    Example:
        >>> parse_corners("north, south")
        ('north', 'south')
    """
    if not text.strip():
        return None
    names = [part.strip() for part in text.split(",")]
    if len(names) != 2 or not all(names):
        raise ConfigError(f"--plane {text!r}: expected two silos with a comma between, such as 'north,south'")
    return names[0], names[1]


def check_kind(models: list[str]) -> bool:
    """Whether one run is given; else adapters.

    Raises:
        ConfigError: a run beside something else, or one adapter twice.
    """
    runs = [model for model in models if is_run_folder(Path(model))]
    if runs and len(models) > 1:
        raise ConfigError(f"{runs[0]} is a run: a run is inspected by itself, its deltas lie in it")
    twice = sorted({model for model in models if models.count(model) > 1})
    if twice:
        raise ConfigError(f"{twice[0]} is given twice")
    return bool(runs)


def is_run_folder(folder: Path) -> bool:
    """Whether a folder is a run's, by its files' names."""
    return (folder / "config.toml").is_file() and (folder / "rounds").is_dir()


def measure(case: Case, settings: Settings) -> Inspection:
    """Measure a case; where rows are scored, with a bar over the adapters to score."""
    from fedmerge.cli.progress import working
    from fedmerge.study.base_weights import base_weights
    from fedmerge.study.inspection import inspect as inspected
    from fedmerge.study.landscape import evaluations

    weights = base_weights(case.base) if case.base else None
    if case.config is None:
        return inspected(case.subject, settings, weights)
    from fedmerge.study.bench import Bench
    from fedmerge.study.scorer import BenchScorer

    steps = settings.steps if settings.plane else 0
    pieces = evaluations(len(case.subject.names), settings.points, steps)
    with Bench(case.config) as bench, working(f"scoring {pieces} adapters", pieces) as watch:
        return inspected(case.subject, settings, weights, BenchScorer(bench), watch.advance)


def told(case: Case, found: Inspection) -> Outcome:
    """Write the figures down, and show them."""
    from fedmerge.cli.inspect_tables import report
    from fedmerge.server import storage
    from fedmerge.study.geometry_file import as_values

    values = as_values(found)
    shown = report(found, case.title)
    if case.output is not None:
        with storage.writing(case.output):
            storage.write_json(case.output, plain(values))
        shown += ["", f"figures: {case.output.absolute()}"]
    return Outcome(values | {"file": None if case.output is None else case.output.absolute()}, ["", *shown])
