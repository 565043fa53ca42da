"""A process that was forked once, never computes anything, and forks workers when asked.

Workers must be forked from a process in which torch never ran in parallel: an OpenMP pool does not survive a
fork, and the child hangs in its first parallel loop. The run's own process merges, so a worker that has to be
replaced in round 5 can't come from there; it comes from here, from memory as it was before round 1. The base
is loaded once and shared by all, page by page, until someone writes to it (nobody does).

When the run's process ends in whatever way, kill -9 included, the nursery reads the end of its socket, kills
its workers and ends too.
"""

from __future__ import annotations

import gc
import logging
import os
import signal
import socket
import sys
from collections.abc import Callable
from multiprocessing import Pipe
from multiprocessing.connection import Connection
from typing import Any, NoReturn

logger = logging.getLogger(__name__)

Serve = Callable[[Any], Any]


class Nursery:
    """Forks workers that answer what is sent to them with `serve`.

    Example:
        >>> nursery = Nursery(lambda question: question * 2)
        >>> worker = nursery.worker()
        >>> worker.send(21)
        >>> worker.recv()
        42
        >>> worker.close()
        >>> nursery.close()
    """

    def __init__(self, serve: Serve) -> None:
        """Fork the nursery from this process as it is now."""
        self._control, theirs = socket.socketpair()
        sys.stdout.flush()
        sys.stderr.flush()
        self._pid = os.fork()
        if self._pid == 0:
            self._control.close()
            _never_return(lambda: _nurse(theirs, serve))
        theirs.close()

    def worker(self) -> Connection:
        """A connection to a new worker: send one question, receive one answer; EOFError when it has died."""
        ours, theirs = Pipe()
        socket.send_fds(self._control, [b"w"], [theirs.fileno()])
        if not self._control.recv(1):  # wait: it has its own copy now
            raise OSError("the process that forks workers is gone")
        theirs.close()
        return ours

    def close(self) -> None:
        """Kill all workers and wait until the nursery has ended. Twice is as good as once."""
        self._control.close()
        if self._pid:
            os.waitpid(self._pid, 0)
            self._pid = 0


def _never_return(run: Callable[[], None]) -> NoReturn:
    """Run and exit: a forked child must not go on with its parent's stack, handlers or exit hooks."""
    status = 1
    try:
        run()
        status = 0
    except BaseException:
        logger.exception("a forked process failed")
    finally:
        sys.stdout.flush()
        sys.stderr.flush()
        os._exit(status)


def _nurse(control: socket.socket, serve: Serve) -> None:
    """Fork a worker for each file descriptor that comes in, until the other end closes."""
    # Ctrl-C goes to the whole process group; the run's process decides, and closing the socket tells us.
    signal.signal(signal.SIGINT, signal.SIG_IGN)
    signal.signal(signal.SIGTERM, signal.SIG_IGN)
    gc.freeze()  # the collector would write to every object, and so copy the shared pages
    children: set[int] = set()
    while descriptors := socket.recv_fds(control, 1, 1)[1]:
        pid = os.fork()
        if pid == 0:
            control.close()
            signal.signal(signal.SIGTERM, signal.SIG_DFL)
            _never_return(lambda: _work(Connection(descriptors[0]), serve))
        os.close(descriptors[0])
        control.send(b"w")
        children = {child for child in children if _alive(child)} | {pid}
    for child in children:
        if _alive(child):
            os.kill(child, signal.SIGKILL)
            os.waitpid(child, 0)


def _alive(child: int) -> bool:
    """Whether a child of this process still runs; one that has ended is reaped."""
    return os.waitpid(child, os.WNOHANG) == (0, 0)


def _work(connection: Connection, serve: Serve) -> None:
    """Answer questions until the other end is gone."""
    while True:
        try:
            question = connection.recv()
            connection.send(serve(question))
        except (EOFError, OSError):
            return
