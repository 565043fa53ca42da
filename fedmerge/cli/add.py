"""`fedmerge add`: one more adapter is merged into a finished run."""

from __future__ import annotations

from pathlib import Path
from typing import Annotated

import typer

from fedmerge.cli.changed import shown
from fedmerge.cli.manner import Outcome
from fedmerge.cli.one_shot import check_output
from fedmerge.errors import ConfigError


def add(
    run: Annotated[Path, typer.Argument(help="A finished run that kept its deltas.", metavar="RUN")],
    adapter: Annotated[
        str, typer.Argument(help="An adapter's folder, a run's, or a Hub id.", metavar="ADAPTER")
    ],
    *,
    name: Annotated[str, typer.Option(help="What it is called; default: its folder's name.")] = "",
    weight: Annotated[
        float | None,
        typer.Option(
            help="Among the silos' numbers of examples (1 each where they weigh alike).", show_default=False
        ),
    ] = None,
    space: Annotated[str, typer.Option(help="Where to compare; default: the run's space.")] = "",
    output: Annotated[
        Path | None,
        typer.Option("-o", "--output", help="The new run; default: RUN+NAME.", show_default=False),
    ] = None,
) -> Outcome:
    """Merge one more adapter into a finished run, and score every silo before and after."""
    from fedmerge.cli.progress import watching
    from fedmerge.study.admission import adapter_folders, name_of
    from fedmerge.study.continual import Newcomer
    from fedmerge.study.continual import add as merge_in
    from fedmerge.wire.files import load_adapter

    source, *others = adapter_folders([adapter])
    if others:
        raise ConfigError(f"{adapter} holds {1 + len(others)} adapters; name one of them, {source} say")
    called = name or name_of(source)
    folder = check_output(output or run.absolute().with_name(f"{run.absolute().name}+{called}"))
    newcomer = Newcomer(called, load_adapter(source), weight)
    with watching(1) as observer:
        result = merge_in(run, newcomer, folder, space, observer)
    return Outcome({**result, "folder": folder}, shown(result, folder))
