"""`fedmerge one-shot`: adapters that were handed over by any means, merged once and scored like a run."""

from __future__ import annotations

import time
from pathlib import Path
from typing import TYPE_CHECKING, Annotated, Any

import typer

from fedmerge.cli import recipe, simulate
from fedmerge.cli.manner import STARTED, Outcome
from fedmerge.cli.options import NO_SETS, Sets
from fedmerge.errors import ConfigError

if TYPE_CHECKING:
    from fedmerge.study.one_shot import Handed


def one_shot(
    adapters: Annotated[
        list[str],
        typer.Argument(
            help="Adapter folders, Hub ids, or a folder that holds adapters.", metavar="ADAPTER..."
        ),
    ],
    *,
    simulation: Annotated[
        str, typer.Option(help="Whose silos score them: a path, or a packaged one; default: the built-in.")
    ] = "",
    strategy: Annotated[str, typer.Option(help="A strategy: a path, or the name of a packaged one.")] = "",
    sets: Sets = NO_SETS,
    names: Annotated[str, typer.Option(help="A name for each, 'a,b'; default: the folders' names.")] = "",
    weights: Annotated[
        str, typer.Option(help="A number for each, '120,80'; default: as strategy.weighting says.")
    ] = "",
    output: Annotated[
        Path | None,
        typer.Option("-o", "--output", help="The run's folder, new or empty.", show_default=False),
    ] = None,
) -> Outcome:
    """Merge adapters once, score them on a simulation's silos, and leave a run's folder."""
    from fedmerge.cli.progress import watching

    config = recipe.read(simulation, strategy, sets)
    handed = _handed(adapters, names, weights)
    if output is not None or config.run.output:
        config = _into(config, check_output(output or Path(config.run.output)))
    from fedmerge.study.one_shot import one_shot as run

    with watching(1) as observer:
        result = run(config, handed, observer)
    folder = Path(result["adapter"]).parent
    seconds = round(time.perf_counter() - STARTED, 1)
    following = f"fedmerge sweep {folder}"
    payload = {**result, "folder": folder, "total_seconds": seconds, "next": following}
    told = result["one_shot"]["notes"]
    return Outcome(
        payload, [*simulate.shown(result, folder, seconds, following), *(f"note     {note}" for note in told)]
    )


def _handed(adapters: list[str], names: str, weights: str) -> Handed:
    """The adapters under their names."""
    from fedmerge.cli.merge import parse_names, parse_weights
    from fedmerge.study.admission import adapter_folders, name_of
    from fedmerge.study.one_shot import Handed
    from fedmerge.wire.files import load_adapter

    sources = adapter_folders(adapters)
    called = parse_names(names, len(sources)) or [name_of(source) for source in sources]
    for name in called:
        if called.count(name) > 1:
            raise ConfigError(
                f"{called.count(name)} adapters are called {name!r}; give each a name with --names"
            )
    counts = parse_weights(weights, len(sources))
    loaded = {name: load_adapter(source) for name, source in zip(called, sources, strict=True)}
    return Handed(loaded, None if counts is None else dict(zip(called, counts, strict=True)))


def _into(config: Any, output: Path) -> Any:
    from fedmerge.config import read_config

    return read_config(config.flat | {"run.output": str(output)})


def check_output(folder: Path) -> Path:
    """Where a run is to be written: a new or an empty folder, or one in which the same was interrupted.

    Raises:
        ConfigError: the folder holds something else.
    """
    folder = folder.expanduser().absolute()
    unfinished = (folder / "config.toml").is_file() and not (folder / "result.json").exists()
    if folder.is_file() or (folder.is_dir() and any(folder.iterdir()) and not unfinished):
        raise ConfigError(f"{folder}: there is something already; name another folder with -o/--output")
    return folder
