"""`fedmerge sweep`: many merges of the same deltas, scored without any training; the best one is kept."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import TYPE_CHECKING, Annotated, Any

import typer

from fedmerge.cli import recipe
from fedmerge.cli.manner import Outcome, console, count
from fedmerge.cli.options import NO_SETS, Sets
from fedmerge.cli.table import metric_words, number
from fedmerge.errors import ConfigError

if TYPE_CHECKING:
    from rich.console import RenderableType
    from rich.table import Table

    from fedmerge.cli.progress import Watch
    from fedmerge.study.jobs import Job
    from fedmerge.study.leaderboard import Line

SHOWN = 15
"""Rows of the table; all lines stand in leaderboard.jsonl."""

SLOW_SECONDS = 180
"""What a sweep on all rows may take before it is said that fewer rows are faster."""

NO_TEXTS: list[str] = []
NO_MODELS: list[str] = []


def sweep(
    models: Annotated[
        list[str],
        typer.Argument(
            metavar="RUN",
            help="A run's folder (run.record = true); with --adapters two or more adapters instead.",
            show_default=False,
        ),
    ] = NO_MODELS,
    *,
    adapters: Annotated[
        bool, typer.Option("--adapters", help="The arguments are adapters: folders or Hub ids.")
    ] = False,
    simulation: Annotated[
        str, typer.Option(help="Whose rows score --adapters: a recipe's path or packaged name.")
    ] = "",
    sets: Sets = NO_SETS,
    candidates: Annotated[
        list[str],
        typer.Option(
            metavar="TEXT",
            help="'ties(density=[0.1, 0.2]) @ [product(), core()]'; may be repeated. "
            "Default: about a hundred that fit.",
            show_default=False,
        ),
    ] = NO_TEXTS,
    search: Annotated[
        str, typer.Option(metavar="SAMPLER", help="Search by tpe, random, cmaes, gp or qmc, not a grid.")
    ] = "",
    trials: Annotated[int, typer.Option(help="Candidates of a search.")] = 100,
    seed: Annotated[int, typer.Option(min=0, help="Of a search.")] = 0,
    round: Annotated[
        int | None, typer.Option(help="Which recorded round; default: the last.", show_default=False)
    ] = None,
    rows: Annotated[
        int, typer.Option(help="Validation rows (packed: sequences) of each silo to score on; 0 = all.")
    ] = 0,
    limit_seconds: Annotated[
        float, typer.Option(help="Begin no candidate after so many seconds; 0 = no limit.")
    ] = 0.0,
    output: Annotated[
        Path | None,
        typer.Option("-o", "--output", help="Folder for sweep/ of --adapters.", show_default=False),
    ] = None,
) -> Outcome:
    """Merge recorded deltas in a hundred ways, score each on validation rows, and keep the best."""
    _check_use(models, adapters, simulation, sets, output)
    from fedmerge.study.jobs import job_of_run
    from fedmerge.study.sweeping import Asked
    from fedmerge.study.sweeping import sweep as swept

    asked = Asked(tuple(candidates), search, trials, seed, rows, limit_seconds)
    job = _of_adapters(models, simulation, sets, output) if adapters else job_of_run(Path(models[0]), round)
    with _watching(rows) as watcher:
        result = swept(job, asked, watcher)
    return Outcome(result, shown(result, console().width))


def _check_use(
    models: Sequence[str], adapters: bool, simulation: str, sets: Sequence[str], output: Path | None
) -> None:
    """Refuse what can't be meant, before anything is loaded."""
    runs = [model for model in models if (Path(model) / "config.toml").is_file()]
    if adapters and runs:
        raise ConfigError(f"{runs[0]} is a run's folder: give a run alone, or --adapters with adapters only")
    if adapters and not simulation:
        raise ConfigError(
            "--adapters needs --simulation SIM.toml: the base that the adapters belong to, and the rows that "
            "score them"
        )
    if adapters and len(models) < 2:
        raise ConfigError(f"--adapters: {count(len(models), 'adapter')} given, expected two or more")
    if not adapters and len(models) != 1:
        raise ConfigError(
            f"{len(models)} folders given, expected one run; adapters are named after --adapters"
        )
    if not adapters and (simulation or sets or output):
        raise ConfigError(
            "--simulation, --set and --output belong to --adapters; a run is scored by its own "
            "configuration, and its sweep lies in its folder"
        )


def _of_adapters(models: Sequence[str], simulation: str, sets: Sequence[str], output: Path | None) -> Job:
    config = recipe.read(simulation, "", sets)
    from fedmerge.cli.evaluate import check_base
    from fedmerge.cli.merge import check_heads, common_base
    from fedmerge.study.admission import check_labels
    from fedmerge.study.jobs import job_of_adapters
    from fedmerge.wire.files import load_adapter

    loaded = [load_adapter(model) for model in models]
    common_base(models, loaded)
    check_heads(models, loaded)
    for model, adapter in zip(models, loaded, strict=True):
        check_base(adapter, config, model)

    def labels_fit(labels: Sequence[str]) -> None:
        for adapter in loaded:
            check_labels(adapter, labels)

    folder = output or Path("runs", f"{config.run.name}-adapters-{config.digest[:8]}")
    return job_of_adapters(models, loaded, config, folder.absolute(), labels_fit)


class SweepWatch:
    """Shows a sweep on a `Watch`: how many candidates are done, and the best so far.

    Args:
        watch: where.
        rows: that are scored, of each silo; 0 is all.
    """

    def __init__(self, watch: Watch, rows: int) -> None:
        """Watch a sweep."""
        self._watch, self._rows = watch, rows
        self._total = self._new = 0
        self._lines: list[Line] = []

    def begin(self, total: int) -> None:
        """Begin the bar."""
        self._total = total
        self._watch.begin("merging and scoring", total)

    def line(self, line: Line, *, new: bool) -> None:
        """Move the bar on; say what failed, and once how long it may take."""
        from fedmerge.study.leaderboard import ranked

        self._lines.append(line)
        self._new += new
        if new and line.error:
            self._watch.say(f"{line.candidate}: {line.error}")
        if new and self._new == 1 and not self._rows and line.seconds * self._total > SLOW_SECONDS:
            self._watch.say(
                f"{self._total} candidates on all validation rows may take "
                f"{line.seconds * self._total / 60:.0f} minutes; --rows 16 scores fewer rows of each silo"
            )
        best = next(iter(ranked(self._lines)), None)
        self._watch.advance(f"best {number(best.mean)} {best.candidate}" if best else "")


def _watching(rows: int) -> Any:
    from contextlib import contextmanager

    from fedmerge.cli.progress import Watch

    @contextmanager
    def shown_while_inside() -> Any:
        watch = Watch(console(stderr=True))
        with watch.shown():
            watch.announce("loading base and data")
            yield SweepWatch(watch, rows)

    return shown_while_inside()


def shown(result: Mapping[str, Any], width: int) -> list[RenderableType]:
    """The table of the best candidates, and what is to be known of them."""
    from rich.text import Text

    return ["", Text(_title(result)), "", _table(result, width), "", *map(Text, _notes(result))]


def _title(result: Mapping[str, Any]) -> str:
    rows = (
        f"{result['rows']} validation rows of each silo" if result["rows"] else "each silo's validation rows"
    )
    return f"{count(result['scored'], 'candidate')}: {metric_words(result)}; measured on {rows}"


def _table(result: Mapping[str, Any], width: int) -> Table:
    from rich import box
    from rich.table import Table

    table = Table(box=box.SIMPLE_HEAD, padding=(0, 1, 0, 0), show_edge=False, pad_edge=False)
    columns = ("mean", "worst silo", "to fedavg", "error", "test mean")
    table.add_column("", overflow="fold", max_width=max(24, width - 11 * len(columns)))
    for name in columns:
        table.add_column(name, justify="right", no_wrap=True)
    within = set(result["tied"])
    tests = _tests(result)
    for row in result["ranking"][:SHOWN]:
        name = row["candidate"]
        cells = (name + (" =" if name in within else ""), number(row["mean"]), number(row["worst"]))
        table.add_row(
            *cells, _signed(row["difference"]), number(row["error"]), number(tests.get(name)),
            style="bold" if name == result["best"]["candidate"] else "",
        )  # fmt: skip
    table.add_section()
    for name, scores in result["beside"].items():
        on = scores["validation"] or {}
        label = f"fedavg: {result['reference']}" if name == "fedavg" else name
        test = (scores["test"] or {}).get("mean")
        table.add_row(
            label, number(on.get("mean")), number(on.get("worst")), "", "", number(test), style="dim"
        )
    return table


def _tests(result: Mapping[str, Any]) -> dict[str, float]:
    """Test means of the candidates that have one."""
    rows = (result["best"], result["beside"]["fedavg"])
    return {row["candidate"]: row["test"]["mean"] for row in rows if row["test"]}


def _signed(value: float | None) -> str:
    return "-" if value is None else f"{value:+.3f}"


def _notes(result: Mapping[str, Any]) -> list[str]:
    best, alike = result["best"], len(result["tied"])
    notes = []
    if alike:
        notes.append(
            f"= within one standard error of the best, so no worse for all that is known: {alike} more"
        )
    if result["scored"] > 1:
        notes.append(
            f"the best of {result['scored']} looks better on the rows that chose it than it is; "
            + (
                "its test score is the honest one"
                if best["test"]
                else "there are no test rows to tell how much"
            )
        )
    if result["failed"]:
        first = result["failed"][0]
        notes.append(
            f"{count(len(result['failed']), 'candidate')} failed, {first['candidate']}: {first['error']}"
        )
    if result["stopped"]:
        notes.append(f"{result['stopped']} ended it early; the same command goes on")
    known = result["candidates"] - result["computed"]
    taken = f"{result['seconds']:.0f} s" + (f"; {known} were known from an earlier call" if known else "")
    return [*notes, f"{count(result['candidates'], 'candidate')} in {taken}", f"best: {result['adapter']}"]
