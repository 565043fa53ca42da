"""`fedmerge inspect`: how the deltas of a run, or adapters on disk, lie to each other and to their base."""

from __future__ import annotations

from collections.abc import Sequence
from pathlib import Path
from typing import TYPE_CHECKING, Annotated

import typer

from fedmerge.cli import recipe
from fedmerge.cli.manner import Outcome, count, plain
from fedmerge.cli.options import NO_SETS, Sets
from fedmerge.errors import ConfigError

if TYPE_CHECKING:
    from fedmerge.study.cases import Case
    from fedmerge.study.inspection import Inspection, Settings


def inspect(
    models: Annotated[
        list[str],
        typer.Argument(
            help="A run's folder; adapters (folders or Hub ids); or whole models.", metavar="RUN|ADAPTER..."
        ),
    ],
    *,
    simulation: Annotated[
        str,
        typer.Option(help="Score adapters on the validation rows of this simulation.", metavar="SIM.toml"),
    ] = "",
    sets: Sets = NO_SETS,
    base: Annotated[
        str, typer.Option(help="The base, for relative lengths: 'builtin', a folder or a Hub id.")
    ] = "",
    round: Annotated[int, typer.Option(min=0, help="Of the run; 0: the last one recorded.")] = 0,
    density: Annotated[
        float | None, typer.Option(help="Share of entries that the trim keeps; default: 0.2.")
    ] = None,
    points: Annotated[
        int | None, typer.Option(help="Points on the line between two silos; default: 5.")
    ] = None,
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
    kind, corners = kind_of(models), parse_corners(plane)
    given: dict[str, object] = {
        "--simulation": simulation or None, "--set": sets or None, "--base": base or None,
        "--round": round or None, "--no-scores": no_scores or None, "--density": density,
        "--points": points, "--plane": corners, "--no-plane": no_plane or None,
    }  # fmt: skip
    check_options(kind, [name for name, value in given.items() if value is not None])
    if kind == "model":
        return inspected_models(models, base, output)
    from fedmerge.study.cases import of_adapters, of_run
    from fedmerge.study.inspection import DENSITY, POINTS, Settings

    settings = Settings(
        DENSITY if density is None else density, POINTS if points is None else points, not no_plane, corners
    )
    if kind == "run":
        case = of_run(models[0], round, output, scored=not no_scores)
    else:
        case = of_adapters(models, recipe.read(simulation, "", sets) if simulation else None, base, output)
    return told(measure(case, settings), case.title, case.output)


def check_options(kind: str, given: Sequence[str]) -> None:
    """Refuse options that would be left unused, or that contradict each other.

    Args:
        kind: "run", "adapter" or "model".
        given: names of the options that were given.

    Raises:
        ConfigError: names them, and says why.

    Example:
        >>> check_options("adapter", ["--round", "--base"])
        Traceback (most recent call last):
        fedmerge.errors.ConfigError: --round is for a run
    """
    rows, losses = ("--simulation", "--set"), ("--points", "--plane", "--no-plane")
    unused: list[tuple[bool, Sequence[str], str]] = [
        (kind != "run", ("--round", "--no-scores"), "for a run"),
        (kind == "run", (*rows, "--base"), "not for a run, which brings its own"),
        (kind == "model", (*rows, *losses, "--density"), "not for whole models"),
        ("--simulation" not in given, ("--set",), "for a simulation: give --simulation"),
        (kind != "run" and "--simulation" not in given, losses, "about losses: give --simulation"),
        ("--no-scores" in given, losses, "about losses, and --no-scores leaves them out"),
        (
            "--simulation" in given,
            ("--base",),
            "for adapters without a simulation, which names the base itself",
        ),
        ("--no-plane" in given, ("--plane",), "contradicted by --no-plane"),
    ]
    for holds, options, why in unused:
        strange = [name for name in options if name in given]
        if holds and strange:
            raise ConfigError(f"{', '.join(strange)} {'is' if len(strange) == 1 else 'are'} {why}")


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


def kind_of(models: Sequence[str]) -> str:
    """What is given: "run", "adapter" or "model".

    Raises:
        ConfigError: a run beside something else, adapters beside whole models, or one of them twice.
    """
    twice = sorted({model for model in models if models.count(model) > 1})
    if twice:
        raise ConfigError(f"{twice[0]} is given twice")
    kinds = {model: _kind(Path(model)) for model in models}
    runs = [model for model, kind in kinds.items() if kind == "run"]
    if runs and len(models) > 1:
        raise ConfigError(f"{runs[0]} is a run: a run is inspected by itself, its deltas lie in it")
    if len(set(kinds.values())) > 1:
        listed = ", ".join(
            f"{model} is {'an' if kind == 'adapter' else 'a'} {kind}" for model, kind in kinds.items()
        )
        raise ConfigError(f"adapters and whole models are not compared with each other: {listed}")
    return next(iter(kinds.values()))


def _kind(folder: Path) -> str:
    """By its files' names; what is no folder here may be an adapter's Hub id."""
    if (folder / "config.toml").is_file() and not (folder / "adapter_config.json").exists():
        return "run"
    whole = any((folder / name).exists() for name in ("model.safetensors", "model.safetensors.index.json"))
    return "model" if whole and not (folder / "adapter_config.json").exists() else "adapter"


def measure(case: Case, settings: Settings) -> Inspection:
    """Measure a case; where rows are scored, with a bar over the adapters to score."""
    from fedmerge.cli.progress import working
    from fedmerge.study.base_weights import base_weights
    from fedmerge.study.inspection import check_corners
    from fedmerge.study.inspection import inspect as inspected
    from fedmerge.study.landscape import evaluations

    check_corners(case.subject, settings)
    weights = base_weights(case.base) if case.base else None
    if case.config is None:
        return inspected(case.subject, settings, weights)
    from fedmerge.study.admission import check_labels
    from fedmerge.study.bench import Bench
    from fedmerge.study.scorer import BenchScorer, check_fits

    steps = settings.steps if settings.plane else 0
    pieces = evaluations(len(case.subject.names), settings.points, steps)
    with Bench(case.config, case.memo) as bench, working(f"scoring {pieces} adapters", pieces) as watch:
        check_fits(case.subject.trained, bench.initial)
        for adapter in case.subject.deltas:
            check_labels(adapter, bench.labels)
        return inspected(case.subject, settings, weights, BenchScorer(bench), watch.advance)


def inspected_models(models: Sequence[str], base: str, output: Path | None) -> Outcome:
    """Compare whole models with their base.

    Raises:
        ConfigError: no base is given, or there is none.
        AdapterMismatch: models that do not fit it.
    """
    from fedmerge.cli.progress import working
    from fedmerge.study.cases import called, folder_of
    from fedmerge.study.whole_models import inspect_models
    from fedmerge.wire.checkpoint import open_checkpoint

    if not base:
        raise ConfigError("whole models are compared with their base: give --base")
    start = open_checkpoint(folder_of(base))
    opened = {name: open_checkpoint(model) for name, model in zip(called(models), models, strict=True)}
    with working("reading", len(start.entries)) as watch:
        found = inspect_models(opened, start, watch.advance)
    return told(found, f"{count(len(models), 'whole model')}: {', '.join(opened)}", output)


def told(found: Inspection, title: str, output: Path | None) -> Outcome:
    """Write the figures down, and show them."""
    from fedmerge.cli.inspect_tables import report
    from fedmerge.server import storage
    from fedmerge.study.geometry_file import as_values

    values, shown = as_values(found), report(found, title)
    if output is not None:
        with storage.writing(output):
            storage.write_json(output, plain(values))
        shown += ["", f"figures: {output.absolute()}"]
    return Outcome(values | {"file": None if output is None else output.absolute()}, ["", *shown])
