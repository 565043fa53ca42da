"""The trackers that `run.trackers` names: observers for the dashboards that people have already.

A tracker is found by its name: ours, or what an installed package offers in its pyproject.toml:

    [project.entry-points."fedmerge.trackers"]
    wall = "our_package.screens:Wall"

The object is called with the run's `Config` and the `Path` of its folder, before anything is loaded or
forked, and gives a `Tracker` that starts no thread and writes nothing before `run_started`. It refuses, with
a `FedMergeError`, what would keep it from working; from then on its failures are its own.
"""

from __future__ import annotations

import logging
from collections.abc import Callable, Iterator, Mapping, Sequence
from contextlib import ExitStack, contextmanager
from importlib.metadata import EntryPoint
from pathlib import Path
from typing import Any, Protocol

from fedmerge.config import Config
from fedmerge.errors import ConfigError, FedMergeError, nearest
from fedmerge.server.observer import Observer, Several, Silent
from fedmerge.silo.entries import entry_names, load_entry

logger = logging.getLogger(__name__)

GROUP = "fedmerge.trackers"
"""Entry point group: name -> function of `Config` and the run's folder that gives a `Tracker`."""

KEY = "run.trackers"

# Ours, by the door that is open to all: they stand above the run, which therefore does not import them.
OURS = {
    name: EntryPoint(name, f"fedmerge.study.trackers.{name}:{made}", GROUP)
    for name, made in (("tensorboard", "TensorBoard"), ("mlflow", "MLflow"))
}


class Tracker(Observer, Protocol):
    """An observer that is told when it is over; `fedmerge.server.observer.Silent` is a base for one."""

    def close(self) -> None:
        """Once, at the very end, also of a run that failed: it was not told `finished` then."""


class Expendable:
    """A tracker whose failures don't matter to the run: one warning, and it is told nothing more.

    Args:
        name: of the tracker, for the warning.
        tracker: told each event until it fails.
    """

    def __init__(self, name: str, tracker: Tracker) -> None:
        """Pass events on."""
        self._name, self._tracker = name, tracker
        self._failed = False

    def run_started(self, plan: Mapping[str, Any]) -> None:
        """Pass on."""
        self._tell("run_started", plan)

    def phase(self, text: str) -> None:
        """Pass on."""
        self._tell("phase", text)

    def round_started(self, round: int, silos: Sequence[str]) -> None:
        """Pass on."""
        self._tell("round_started", round, silos)

    def reply(self, round: int, silo: str, outcome: str, metrics: Mapping[str, float]) -> None:
        """Pass on."""
        self._tell("reply", round, silo, outcome, metrics)

    def round_closed(self, report: Mapping[str, Any]) -> None:
        """Pass on."""
        self._tell("round_closed", report)

    def finished(self, result: Mapping[str, Any]) -> None:
        """Pass on."""
        self._tell("finished", result)

    def close(self) -> None:
        """Pass on."""
        self._tell("close")

    def _tell(self, event: str, *values: Any) -> None:
        if self._failed:
            return
        try:
            getattr(self._tracker, event)(*values)
        except Exception as error:  # a full disk, a server that is away, whatever another's code raises
            self._failed = True
            said = next(iter(str(error).splitlines()), "")  # a database adds its statement to what it says
            logger.warning(
                "tracker %r failed and is left out from here on (%s: %s); the run goes on",
                self._name, type(error).__name__, said,
            )  # fmt: skip


def trackers(config: Config) -> tuple[Expendable, ...]:
    """The trackers that a run-config names. Making them writes and starts nothing.

    Raises:
        ConfigError: a name that is unknown, or a tracker whose package is missing or can't be used.
    """
    return tuple(Expendable(name, _made(name, config)) for name in config.run.trackers)


@contextmanager
def tracked(config: Config, observer: Observer | None = None) -> Iterator[Observer]:
    """An observer that tells `observer` and the trackers; they are closed at the end.

    Raises:
        ConfigError: as `trackers` says, before anything else is done.
    """
    named = trackers(config)
    with ExitStack() as closing:
        for tracker in named:
            closing.callback(tracker.close)
        yield Several((observer or Silent(), *named))


def _made(name: str, config: Config) -> Tracker:
    try:
        tracker: Tracker = _maker(name)(config, config.folder)
    except FedMergeError:
        raise
    except Exception as error:  # whatever another package's code raises
        raise ConfigError(f"{KEY}: {name!r} can't be used: {type(error).__name__}: {error}") from error
    return tracker


def _maker(name: str) -> Callable[[Config, Path], Tracker]:
    """What makes the tracker of a name; the names of ours can't be taken over."""
    if name in OURS:
        ours: Callable[[Config, Path], Tracker] = OURS[name].load()
        return ours
    known = {*OURS, *entry_names(GROUP)}
    if name not in known:
        raise ConfigError(f"{KEY}: no tracker {name!r}; {nearest(name, known)}")
    found: Callable[[Config, Path], Tracker] = load_entry(GROUP, name, KEY)
    return found
