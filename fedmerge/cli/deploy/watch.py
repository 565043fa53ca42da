"""`fedmerge deploy watch`: keep a run going, and show how it is."""

from __future__ import annotations

import signal
import sys
from collections.abc import Iterator, Sequence
from contextlib import contextmanager
from pathlib import Path
from threading import Event
from types import FrameType
from typing import TYPE_CHECKING, Annotated

import typer

from fedmerge.cli import recipe
from fedmerge.cli.manner import Outcome
from fedmerge.cli.options import NO_SETS, Sets
from fedmerge.errors import ConfigError

if TYPE_CHECKING:
    from fedmerge.config import Flat
    from fedmerge.deployment.watching.supervise import Ending

RUN_ENDED_BADLY = 3
"""Exit status where trying again by itself makes no sense: a unit does not restart on it."""


def watch(
    server: Annotated[Path, typer.Argument(help="The server's folder, which `deploy init` wrote.")],
    simulation: Annotated[
        str,
        typer.Argument(
            metavar="[RUN.toml]",
            help="A recipe: a path or a packaged name; default: the run that was watched last.",
            show_default=False,
        ),
    ] = "",
    *,
    strategy: Annotated[str, typer.Option(help="A strategy: a path, or the name of a packaged one.")] = "",
    sets: Sets = NO_SETS,
    metrics: Annotated[
        str | None,
        typer.Option(
            help="HOST:PORT of /metrics and /health, '' for none; default: server.toml.", show_default=False
        ),
    ] = None,
    every: Annotated[float, typer.Option(min=0.1, help="Seconds between two questions to Flower.")] = 10.0,
    attempts: Annotated[int, typer.Option(min=1, help="In a row, with no round closed in between.")] = 6,
    margin: Annotated[
        float, typer.Option(min=0, help="Seconds a round may take beside its deadline.")
    ] = 120.0,
    linger: Annotated[float, typer.Option(min=0, help="Seconds to go on serving after the end.")] = 0.0,
) -> Outcome:
    """Submit a run, submit it again when it was lost, never twice at once; serve /metrics and /health."""
    from fedmerge.deployment.watching.place import read_place
    from fedmerge.deployment.watching.supervise import Window, supervise
    from fedmerge.deployment.watching.watch import Habits

    place = read_place(server)
    flat = _wanted(place.server, simulation, strategy, sets)
    window = Window(place.metrics if metrics is None else metrics, margin, linger)
    stop = Event()
    caught: list[int] = []
    with _signals(stop, caught):
        ending = supervise(place, flat, Habits(every, attempts, stop.wait), window, _line)
    return _outcome(ending, caught)


def _wanted(server: Path, simulation: str, strategy: str, sets: Sequence[str]) -> Flat | None:
    """The run-config as it is submitted, the same at every attempt; None for the run watched last."""
    if not simulation:
        if strategy or sets:
            raise ConfigError("--strategy and --set change a recipe: name it")
        return None
    config = recipe.read(simulation, strategy, sets)
    from fedmerge.deployment.submission import deployed

    return deployed(config.flat, server).flat


@contextmanager
def _signals(stop: Event, caught: list[int]) -> Iterator[None]:
    """SIGTERM and Ctrl-C end the watch between two turns, so that no submission is cut in two."""

    def note(number: int, frame: FrameType | None) -> None:
        caught.append(number)
        stop.set()

    before = {number: signal.signal(number, note) for number in (signal.SIGTERM, signal.SIGINT)}
    try:
        yield
    finally:
        for number, handler in before.items():
            signal.signal(number, handler)


def _outcome(ending: Ending, caught: list[int]) -> Outcome:
    memory, view = ending.memory, ending.view
    last = memory.runs[-1] if memory.runs else ""
    sentence = memory.ended or (f"the watch has ended; run {last} goes on" if last else "the watch has ended")
    payload = {
        "completed": memory.completed,
        "ended": ending.ended,
        "sentence": sentence,
        "folder": memory.folder,
        "runs": memory.runs,
        "resubmissions": memory.resubmissions,
        "rounds_closed": view.figures.closed,
    }
    status = RUN_ENDED_BADLY if ending.ended else 128 + (caught[0] if caught else signal.SIGTERM)
    return Outcome(payload, [sentence], 0 if memory.completed else status)


def _line(text: str) -> None:
    sys.stderr.write(text + "\n")
    sys.stderr.flush()
