"""A watch from its beginning to its end: what is watched, by one watcher at a time, seen from outside."""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass

from fedmerge.config import Config, Flat
from fedmerge.deployment import health
from fedmerge.deployment.metrics import registry
from fedmerge.deployment.serving import serving
from fedmerge.deployment.watching import memory as memories
from fedmerge.deployment.watching.flower import Flower
from fedmerge.deployment.watching.journal import Journal
from fedmerge.deployment.watching.memory import Memory
from fedmerge.deployment.watching.place import Place
from fedmerge.deployment.watching.view import View
from fedmerge.deployment.watching.watch import Habits, Watcher
from fedmerge.errors import ConfigError


@dataclass(frozen=True)
class Window:
    """How a watch is seen from outside.

    Args:
        address: where /metrics and /health are served; "" for nowhere.
        margin_seconds: what a round may take beside waiting for nodes and its deadline.
        linger_seconds: how long the last figures stay there after the end.
    """

    address: str = ""
    margin_seconds: float = health.MARGIN_SECONDS
    linger_seconds: float = 0.0


@dataclass(frozen=True)
class Ending:
    """How a watch ended.

    Args:
        memory: what is remembered of the run.
        view: the last one.
        ended: whether the run has ended; else the watch was, and the run goes on.
    """

    memory: Memory
    view: View
    ended: bool


def supervise(
    place: Place,
    flat: Flat | None,
    habits: Habits,
    window: Window,
    write: Callable[[str], None],
) -> Ending:
    """Keep a run going until it has ended, or the watch is to end.

    Args:
        place: the server.
        flat: the run-config as it is to be submitted; None goes on with the run that was watched last.
        habits: how the watcher goes about it.
        window: how it is seen.
        write: takes each line of the journal.

    Raises:
        ConfigError: nothing to watch, or an address that can't be served.
        CheckpointError: another watcher is at work there, or nothing can be written there.
    """
    with memories.only_one(place.runs):
        memory = _recalled(place, flat)
        journal = Journal(write, memory.folder.name)
        watcher = Watcher(place, memory, Flower(place.server, place.federation), journal, habits)
        probe = health.Probe(place.health, place.certificate)
        limit = limit_seconds(memory.checked(), window.margin_seconds)

        def judge() -> health.Health:
            return health.judge(watcher.view, limit, probe(), habits.clock())

        with serving(window.address, registry(lambda: watcher.view, probe), judge) as served:
            if served:
                journal.say("metrics-served", f"http://{served}/metrics and /health")
            ended = watcher.watch()
            if ended and served and window.linger_seconds:
                habits.rest(window.linger_seconds)
        return Ending(watcher.memory, watcher.view, ended)


def limit_seconds(config: Config, margin_seconds: float) -> float:
    """Within which a round is to be closed: its wait for nodes, its deadline, and the margin."""
    return config.strategy.wait_seconds + config.strategy.deadline_seconds + margin_seconds


def _recalled(place: Place, flat: Flat | None) -> Memory:
    """What is remembered of the run that is wanted; a run that has ended begins its count anew."""
    kept = memories.read(place.runs)
    if flat is not None:
        return kept if kept and kept.config == flat and not kept.ended else Memory(flat)
    if kept is None:
        raise ConfigError(f"{place.runs}: no run was watched there yet; give the run's TOML file")
    return kept
