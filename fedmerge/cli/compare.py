"""`fedmerge compare`: strategies on the same silos, data, batches and seeds, in one table."""

from __future__ import annotations

import shlex
import sys
from collections.abc import Mapping, Sequence
from dataclasses import replace
from pathlib import Path
from typing import TYPE_CHECKING, Annotated, Any

import typer

from fedmerge.cli.manner import Outcome, console, size
from fedmerge.cli.options import NO_SETS, Sets
from fedmerge.cli.table import metric_words, number
from fedmerge.errors import ConfigError

if TYPE_CHECKING:
    from rich.console import RenderableType
    from rich.table import Table

    from fedmerge.study.season import Question
    from fedmerge.study.tuning import Tuning

_SHORT = 9  # characters of a name that a column's head has room for
_VERDICTS = {"better": "+", "worse": "-", "tie": "tie"}


def compare(  # noqa: PLR0917 (arguments and options of a command)
    simulation: Annotated[
        str, typer.Argument(metavar="SIM.toml", help="A simulation: a path, or the name of a packaged one.")
    ],
    strategies: Annotated[
        list[str],
        typer.Argument(
            metavar="STRATEGY.toml...",
            help='Strategies: paths or names of packaged ones; "all" for every packaged one that fits.',
        ),
    ],
    seeds: Annotated[str, typer.Option(help="Seeds, with commas between.")] = "0",
    tune: Annotated[
        str,
        typer.Option(
            metavar="KNOB[=VALUES]",
            help="Tune a number of each rule on validation rows first: scale, or density=0.1,0.3.",
        ),
    ] = "",
    tune_rounds: Annotated[
        int, typer.Option(help="Rounds of a trial; 0: those of the simulation. With 1, trials train nothing.")
    ] = 0,
    tune_rows: Annotated[
        int, typer.Option(help="Validation rows of each silo that a trial is scored on; 0: all.")
    ] = 0,
    reference: Annotated[str, typer.Option(help="The strategy that all are compared with.")] = "fedavg",
    rows: Annotated[
        int, typer.Option(help="Test rows of each silo that are scored, spread over them; 0: all.")
    ] = 0,
    space: Annotated[
        str, typer.Option(help="Space of every strategy that works there; default: each file's own.")
    ] = "",
    sets: Sets = NO_SETS,
    output: Annotated[str, typer.Option("-o", "--output", help="Folder; default: runs/compare-...")] = "",
) -> Outcome:
    """Compare strategies fairly: one table with spread, worst silo, cost, intervals and trivial baselines.

    The same silos, data, batches and seeds for all; what is equal is computed once. Interrupted, the same
    command goes on where it stopped; with one more strategy or seed it computes what is new.
    """
    from fedmerge.study.tuning import Tuning

    tuning = Tuning.parse(tune, tune_rounds, tune_rows) if tune else None
    question = _question(simulation, strategies, _seeds(seeds), tuning, sets)
    question = replace(question, space=_space(space), reference=reference, rows=rows)
    question = replace(question, folder=Path(output) if output else None)
    found = _answer(question) | {"simulation": simulation}
    path = question.place / "compare.json"
    from fedmerge.server import storage

    with storage.writing(path):
        storage.write_json(path, found)
    return Outcome(found | {"folder": question.place}, shown(found, question.place, console().width))


def _question(
    simulation: str,
    strategies: Sequence[str],
    seeds: Sequence[int],
    tuning: Tuning | None,
    sets: Sequence[str],
) -> Question:
    from fedmerge import config, project
    from fedmerge.study.season import Question

    given = dict(config.parse_set(text) for text in sets)
    return Question(
        simulation=config.overlay(project.find_recipe("simulations", simulation), sets=sets),
        strategies=strategies,
        seeds=seeds,
        tuning=tuning,
        sets={key: value for key, value in given.items() if key.startswith("strategy.")},
    )


def _space(text: str) -> str:
    from fedmerge.adapters.spaces import parse_space

    return str(parse_space(text)) if text else ""


def _seeds(text: str) -> tuple[int, ...]:
    try:
        return tuple(int(part) for part in text.split(",") if part.strip())
    except ValueError:
        raise ConfigError(
            f"--seeds {text!r}: expected whole numbers with commas between, as in 0,1,2"
        ) from None


def _answer(question: Question) -> dict[str, Any]:
    from fedmerge.cli.progress import studying
    from fedmerge.study.compare import compared
    from fedmerge.study.standings import standings

    try:
        with studying() as observer, compared(question, observer) as found:
            return standings(found, shlex.join(["fedmerge", *sys.argv[1:]]))
    except KeyboardInterrupt:
        raise KeyboardInterrupt(
            f"what was computed is kept in {question.place}; the same command goes on from there"
        ) from None


def shown(found: Mapping[str, Any], folder: Path, width: int) -> list[RenderableType]:
    """What a person sees: the table, what must be known to read it, and where it lies."""
    from rich.text import Text

    rows = f"{found['rows_of_each_silo'] or 'all'} {found['split']} rows of each"
    title = f"{metric_words(found)}; mean over {len(found['silos'])} silos, {rows}"
    seeds = ", ".join(map(str, found["seeds"]))
    ran = f"{found['computed']} answers of silos computed, {found['recalled']} known already"
    return [
        "",
        Text(f"{title}; seeds {seeds}" if len(found["seeds"]) > 1 else f"{title}; seed {seeds}"),
        "",
        _table(found, wide=width >= 100),
        "",
        *(Text(note) for note in found["notes"]),
        "",
        f"folder   {folder}",
        f"time     {found['seconds']:.1f} s; {ran}",
        f"page     fedmerge report {folder}",
    ]


def _table(found: Mapping[str, Any], *, wide: bool) -> Table:
    from rich import box
    from rich.table import Table
    from rich.text import Text

    table = Table(box=box.SIMPLE_HEAD, padding=(0, 1, 0, 0), show_edge=False, pad_edge=False)
    table.add_column("", no_wrap=True)  # what a row is called is the last thing to be cut
    columns = ["mean", "sd", "worst"]
    columns += [str(found["tuned"])] * bool(found["tuned"])
    reference = found["reference"] if len(found["reference"]) <= _SHORT else "reference"
    columns += [f"vs {reference}", "95 % interval", ""]
    columns += ["sent", "trained s", "merged s"] * wide
    for name in columns:
        table.add_column(name, justify="right", no_wrap=True)
    kinds = [row["kind"] for row in found["rows"]]
    for place, row in enumerate(found["rows"]):
        last_of_kind = kinds[place : place + 2] == ["strategy", "baseline"]
        style = "dim" if row["kind"] == "baseline" else ""
        cells = _cells(found, row, wide=wide)
        table.add_row(Text(row["name"]), *map(Text, cells), style=style, end_section=last_of_kind)
    return table


def _cells(found: Mapping[str, Any], row: Mapping[str, Any], *, wide: bool) -> list[str]:
    cells = [number(row["mean"]), number(row["spread"]), number(row["worst"])]
    if found["tuned"]:
        cells.append("" if row["knob"] is None else f"{row['knob']:g}")
    cells += _difference(row["difference"])
    if wide:
        sent = row["bytes_up"]
        cells.append("" if sent is None else size(sent + row["bytes_down"]))
        cells += ["" if row[key] is None else f"{row[key]:.1f}" for key in ("seconds", "merge_seconds")]
    return cells


def _difference(found: Mapping[str, Any] | None) -> list[str]:
    if found is None:
        return ["", "", ""]
    known = found["low"] is not None and found["low"] == found["low"]
    interval = f"{found['low']:+.3f}, {found['high']:+.3f}" if known else "unknown"
    return [f"{found['mean']:+.3f}", interval, _VERDICTS[found["verdict"]]]
