"""The commands, in the order in which a newcomer meets them."""

from __future__ import annotations

from collections.abc import Callable
from typing import Annotated, Any

import typer

from fedmerge.cli import (
    add,
    compare,
    deploy,
    doctor,
    evaluate,
    export,
    init,
    inspect,
    merge,
    one_shot,
    remove,
    report,
    rules,
    simulate,
    sweep,
)
from fedmerge.cli.manner import Command

app = typer.Typer(
    name="fedmerge",
    help="Federated learning by weight merging: silos fine-tune adapters, a server merges them by a rule.",
    epilog="Start with `fedmerge init DIR`, or with `fedmerge simulate` for the built-in example.",
    no_args_is_help=True,
    add_completion=False,
    pretty_exceptions_enable=False,
    context_settings={"help_option_names": ["-h", "--help"]},
)


def _version(asked: bool) -> None:
    if asked:
        import fedmerge

        typer.echo(f"fedmerge {fedmerge.__version__}")
        raise typer.Exit


@app.callback()
def _options(
    version: Annotated[
        bool, typer.Option("--version", callback=_version, is_eager=True, help="Show the version and exit.")
    ] = False,
) -> None:
    pass


def _add(name: str, panel: str, command: Callable[..., Any]) -> None:
    app.command(name, cls=Command, rich_help_panel=panel)(command)


_add("init", "Begin", init.init)
_add("doctor", "Begin", doctor.doctor)
_add("rules", "Begin", rules.rules)
_add("simulate", "Train", simulate.simulate)
_add("one-shot", "Train", one_shot.one_shot)
_add("compare", "Study", compare.compare)
_add("sweep", "Study", sweep.sweep)
_add("inspect", "Study", inspect.inspect)
_add("report", "Study", report.report)
_add("add", "Study", add.add)
_add("remove", "Study", remove.remove)
_add("evaluate", "Adapters on disk", evaluate.evaluate)
_add("merge", "Adapters on disk", merge.merge)
_add("export", "Adapters on disk", export.export)
app.add_typer(deploy.app, name="deploy", rich_help_panel="Deploy")
