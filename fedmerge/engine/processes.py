"""Ending a tree of processes whose members detach themselves, as Flower's and Ray's do."""

from __future__ import annotations

import signal
import threading
from collections.abc import Iterator
from contextlib import contextmanager, suppress
from types import FrameType

import psutil  # type: ignore[import-untyped]


def family(root: int, mark: tuple[str, str]) -> list[psutil.Process]:
    """The process `root`, its descendants, and every process that carries the mark in its environment.

    Args:
        root: process id.
        mark: an environment variable and its value, unique to this tree: it finds those whose parent has
            already ended and who are therefore nobody's descendants.
    """
    found: dict[int, psutil.Process] = {}
    with suppress(psutil.Error):
        process = psutil.Process(root)
        found = {each.pid: each for each in (process, *process.children(recursive=True))}
    for process in psutil.process_iter():
        if process.pid not in found and _carries(process, mark):
            found[process.pid] = process
    return list(found.values())


def _carries(process: psutil.Process, mark: tuple[str, str]) -> bool:
    try:
        return bool(process.environ().get(mark[0]) == mark[1])
    except (psutil.Error, OSError):  # ended meanwhile, or somebody else's
        return False


def end_family(root: int, mark: tuple[str, str], grace_seconds: float = 3.0) -> None:
    """Ask the whole tree to end, and kill what is left after the grace; returns when nothing is left."""
    members = family(root, mark)
    for process in members:
        _send(process, signal.SIGTERM)
    psutil.wait_procs(members, timeout=grace_seconds)
    for _ in range(5):  # a member that was just starting another one when it was looked for
        members = [process for process in {*members, *family(root, mark)} if process.is_running()]
        if not members:
            return
        for process in members:
            _send(process, signal.SIGKILL)
        psutil.wait_procs(members, timeout=2.0)


def _send(process: psutil.Process, number: signal.Signals) -> None:
    with suppress(psutil.Error):
        process.send_signal(number)


@contextmanager
def terminate_as_interrupt() -> Iterator[None]:
    """Inside, SIGTERM raises KeyboardInterrupt, so that `finally` blocks run as they do on Ctrl-C.

    Only a main thread may set handlers; in another one nothing changes.
    """
    if threading.current_thread() is not threading.main_thread():
        yield
        return
    before = signal.signal(signal.SIGTERM, _interrupt)
    try:
        yield
    finally:
        signal.signal(signal.SIGTERM, before)


@contextmanager
def lasting_interrupts() -> Iterator[None]:
    """Inside, Ctrl-C is remembered: `raise_if_interrupted` raises it where something has swallowed it.

    Python drops an exception that comes up in a destructor, a weak reference's callback or a library's own
    `except`: a run whose workers compute for hours would not hear of it again.
    """
    ours = threading.current_thread() is threading.main_thread()
    if not ours or signal.getsignal(signal.SIGINT) is not signal.default_int_handler:
        yield
        return
    signal.signal(signal.SIGINT, _remember)
    try:
        yield
    finally:
        signal.signal(signal.SIGINT, signal.default_int_handler)
        _Heard.interrupt = False


def raise_if_interrupted() -> None:
    """Raise an interrupt that was heard inside `lasting_interrupts`, each time until that has ended.

    Raises:
        KeyboardInterrupt: there was one.
    """
    if _Heard.interrupt:
        raise KeyboardInterrupt


class _Heard:
    interrupt = False


def _remember(number: int, frame: FrameType | None) -> None:
    _Heard.interrupt = True
    raise KeyboardInterrupt


def _interrupt(number: int, frame: FrameType | None) -> None:
    raise KeyboardInterrupt
