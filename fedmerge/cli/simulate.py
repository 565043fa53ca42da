"""`fedmerge simulate`: one simulation, watched, and its table at the end."""

from __future__ import annotations

import json
import shlex
import time
from collections.abc import Mapping, Sequence
from enum import StrEnum
from pathlib import Path
from typing import TYPE_CHECKING, Annotated, Any

import typer

from fedmerge.cli import recipe, table
from fedmerge.cli.manner import STARTED, Outcome, console, size
from fedmerge.cli.options import NO_SETS, Sets, Simulation
from fedmerge.errors import CheckpointError

if TYPE_CHECKING:
    from rich.console import RenderableType

    from fedmerge.config import Config
    from fedmerge.server.observer import Observer

_OTHER_RULES = ("ties(density=0.2)", "fedavg()")


class Engine(StrEnum):
    """What runs the silos."""

    local = "local"
    flower = "flower"


def simulate(  # noqa: PLR0917 (arguments and options of a command)
    simulation: Simulation = "",
    strategy: Annotated[str, typer.Option(help="A strategy: a path, or the name of a packaged one.")] = "",
    sets: Sets = NO_SETS,
    engine: Annotated[Engine, typer.Option(help="In this process, or on Flower's runtime.")] = Engine.local,
    dry_run: Annotated[bool, typer.Option("--dry-run", help="Say what it would do; train nothing.")] = False,
    resume: Annotated[
        bool, typer.Option("--resume", help="Go on with what the run's folder holds (run.resume=auto).")
    ] = False,
) -> Outcome:
    """Simulate a federation on this machine: silos train, the server merges, round by round."""
    config = recipe.read(simulation, strategy, [*sets, *["run.resume=auto"] * resume])
    if dry_run:
        from fedmerge.cli import plan

        planned = plan.make(config)
        return Outcome(planned.payload(), planned.shown())
    folder = _run(config, engine)
    result = read_result(folder)
    seconds = round(time.perf_counter() - STARTED, 1)
    following = next_command(simulation, sets, config, strategy)
    payload = {**result, "folder": folder, "total_seconds": seconds, "next": following}
    return Outcome(payload, shown(result, folder, seconds, following))


def read_result(folder: Path) -> dict[str, Any]:
    """The content of a run's `result.json`.

    Raises:
        CheckpointError: the run has none, or it can't be read.
    """
    path = folder / "result.json"
    try:
        result = json.loads(path.read_text(encoding="utf-8"))
    except OSError:
        raise CheckpointError(
            f"{folder}: the run left no result.json, so it did not come to its end"
        ) from None
    except ValueError as error:
        raise CheckpointError(f"{path}: not JSON: {error}") from None
    if not isinstance(result, dict):
        raise CheckpointError(f"{path}: holds no JSON object")
    return result


def shown(result: Mapping[str, Any], folder: Path, seconds: float, following: str) -> list[RenderableType]:
    """What a person sees at the end of a run."""
    return [
        "",
        *table.shown(table.score_table(result), console().width),
        "",
        f"run      {folder}",
        f"adapter  {result['adapter']}",
        *([f"personal {result['personal']}"] if "personal" in result else []),
        *(f"note     {note}" for note in result.get("notes", ())),
        f"sent     {size(result['bytes_up'])} up, {size(result['bytes_down'])} down{_refused(result)}",
        f"time     {seconds:.1f} s in all, loading included",
        f"next     {following}",
    ]


def _refused(result: Mapping[str, Any]) -> str:
    count = len(result["refused"])
    replies = "1 reply was" if count == 1 else f"{count} replies were"
    return f"; {replies} refused, metrics.jsonl says why" if count else ""


def next_command(simulation: str, sets: Sequence[str], config: Config, strategy: str = "") -> str:
    """A command that is worth trying after this run: all as it was, but another rule.

    Its folder is another one, too: that of this run is taken.

    Args:
        simulation: as given on the command line.
        sets: likewise.
        config: of the run that has ended.
        strategy: as given on the command line; it may set more than the rule.
    """
    used = config.strategy.rule.partition("(")[0]
    other = next(rule for rule in _OTHER_RULES if not rule.startswith(used + "("))
    changed = ("strategy.rule=", "run.output=")
    kept = [text for text in sets if not text.replace(" ", "").startswith(changed)]
    settings = [word for text in (*kept, f"strategy.rule={other}") for word in ("--set", text)]
    files = [*filter(None, [simulation]), *(["--strategy", strategy] if strategy else [])]
    return shlex.join(["fedmerge", "simulate", *files, *settings])


def _run(config: Config, engine: Engine) -> Path:
    from fedmerge.cli.progress import watching

    try:
        with watching(config.run.rounds) as observer:
            return _engine(engine, config, observer)
    except KeyboardInterrupt:
        told = (
            f"what the run had written lies in {config.folder}; the same command with --resume goes on there"
        )
        raise KeyboardInterrupt(told) from None


def _engine(engine: Engine, config: Config, observer: Observer) -> Path:
    if engine is Engine.flower:
        from fedmerge.engine.superlink import run_flower
        from fedmerge.silo.base import base_folder
        from fedmerge.silo.data import load_silos

        # Flower's runtime would take half a minute to say what is plain here at once.
        load_silos(config.silo.data)
        base_folder(config.silo.base)
        return run_flower(config, observer)
    from fedmerge.engine.local import run_local

    return run_local(config, observer)
