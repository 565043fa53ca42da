"""A simulation in this process: the same ServerApp and ClientApp as on Flower's runtime, without Ray.

On a CPU the silos train in forked workers, which share one loaded base; on a GPU, or with one worker, here.
"""

from __future__ import annotations

import logging
import os
import threading
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path

import torch
from flwr.app import Context, Message, RecordDict
from tqdm import TMonitor  # type: ignore[import-untyped]

from fedmerge import client_app
from fedmerge.config import Config
from fedmerge.engine.executors import Executor, Forked, InProcess, can_fork
from fedmerge.engine.grid import LocalGrid
from fedmerge.engine.identity import server_identity
from fedmerge.engine.processes import lasting_interrupts
from fedmerge.server.observer import Observer
from fedmerge.server.streaming import StreamingGrid
from fedmerge.server_app.conduct import conduct
from fedmerge.server_app.trackers import tracked
from fedmerge.wire.protocol import read_instruction

logger = logging.getLogger(__name__)

RUN_ID = 1
NODE = 2  # one is enough: any node serves any silo, and whoever is idle serves the node
_LONGEST_PAUSE_SECONDS = 0.001  # the grid itself waits for replies


def run_local(config: Config, observer: Observer | None = None) -> Path:
    """Run a simulation in this process.

    Args:
        config: what to run.
        observer: told of progress. Where it starts threads before this call, no worker can be forked.

    Returns:
        The run's folder.

    Raises:
        FedMergeError: what `fedmerge.server_app.conduct.conduct` raises, and an unusable `run.trackers`.
    """
    with lasting_interrupts(), tracked(config, observer) as watcher:
        watcher.phase("loading base and data")
        with serving(config) as executor:
            conduct(config, grid_over(executor), watcher)
    return config.folder


@contextmanager
def serving(config: Config) -> Iterator[Executor]:
    """An executor whose workers hold the base and all silos of a simulation, for as long as one is inside.

    What a run-config says of the strategy has no part in it: runs that differ in nothing else can share one.

    Raises:
        ConfigError: a base or data set that can't be used.
    """
    with _one_thread(), _quiet_flower(), _executor(config) as executor, server_identity(RUN_ID):
        yield executor


def grid_over(executor: Executor) -> StreamingGrid:
    """A grid of one node, whose messages an executor answers."""
    return StreamingGrid(LocalGrid(executor, [NODE], RUN_ID), longest_pause_seconds=_LONGEST_PAUSE_SECONDS)


def workers(config: Config, silos: int, device: str) -> int:
    """How many processes train silos side by side.

    Args:
        config: `engine.workers` and `train.threads`.
        silos: how many there are.
        device: of the silos; a GPU is not shared between processes.
    """
    if device != "cpu":
        return 1
    return max(1, min(config.engine.workers or cores() // config.silo.train.threads, silos))


def cores() -> int:
    """CPU cores that this process may use."""
    if hasattr(os, "sched_getaffinity"):
        return len(os.sched_getaffinity(0))
    return os.cpu_count() or 1


@contextmanager
def _one_thread() -> Iterator[None]:
    """Torch on one thread, so that no pool exists when workers are forked; as before at the end."""
    before = torch.get_num_threads()
    torch.set_num_threads(1)
    try:
        yield
    finally:
        torch.set_num_threads(before)


@contextmanager
def _quiet_flower() -> Iterator[None]:
    """Flower's loop prints all metrics of all rounds at its end; ours stand in the run's folder."""
    flower = logging.getLogger("flwr")
    before = flower.level
    flower.setLevel(max(before, logging.WARNING))
    try:
        yield
    finally:
        flower.setLevel(before)


def _silo_of(message: Message) -> str:
    return read_instruction(message.content).silo if message.content else ""


def _end_progress_monitor() -> None:
    """End the thread that tqdm leaves behind after its first bar; the next bar starts another."""
    for thread in threading.enumerate():
        if isinstance(thread, TMonitor):
            thread.exit()


@contextmanager
def _executor(config: Config) -> Iterator[Executor]:
    """Who trains; base and rows are loaded first, once."""
    context = Context(RUN_ID, NODE, {}, RecordDict(), config.flat)
    station = client_app.station(context)
    _ = station.worker.fingerprint  # what is wrong with the base is said here, and hashed once for all
    count = workers(config, len(station.examples), station.worker.device)

    def serve(message: Message) -> Message:
        return client_app.app(message, context)

    executor: Executor
    if count > 1:
        station.worker.load()
        _end_progress_monitor()
    if count > 1 and can_fork(config.silo.train.threads):
        executor = Forked(serve, count, _silo_of)
    else:
        if count > 1:
            logger.info("threads run here already, or there is no fork: the silos train one after the other")
        executor = InProcess(serve)
    try:
        yield executor
    finally:
        executor.close()
