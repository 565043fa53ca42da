"""`fedmerge remove`: a finished run is merged again without one of its silos."""

from __future__ import annotations

from pathlib import Path
from typing import Annotated

import typer

from fedmerge.cli.changed import shown
from fedmerge.cli.manner import Outcome
from fedmerge.cli.one_shot import check_output


def remove(
    run: Annotated[Path, typer.Argument(help="A finished run that kept its deltas.", metavar="RUN")],
    silo: Annotated[str, typer.Argument(help="Who leaves.", metavar="SILO")],
    *,
    negate: Annotated[
        float | None,
        typer.Option(
            metavar="SCALE",
            help="Subtract the silo instead, by task_arithmetic(scale=SCALE, negate=SILO).",
            show_default=False,
        ),
    ] = None,
    output: Annotated[
        Path | None,
        typer.Option("-o", "--output", help="The new run; default: RUN-SILO.", show_default=False),
    ] = None,
) -> Outcome:
    """Merge a finished run again without a silo, and score every silo before and after."""
    from fedmerge.cli.progress import watching
    from fedmerge.study.continual import remove as merge_without
    from fedmerge.wire.filenames import file_name

    folder = check_output(output or run.absolute().with_name(f"{run.absolute().name}-{file_name(silo)}"))
    with watching(1) as observer:
        result = merge_without(run, silo, folder, negate, observer)
    return Outcome({**result, "folder": folder}, shown(result, folder))
