"""Who answers messages: this process (`InProcess`), or forked workers (`Forked`).

Both answer the same messages with the same bits: a silo's training depends on its message alone, never on
the worker that serves it.
"""

from __future__ import annotations

import logging
import os
import sys
import threading
from collections import deque
from collections.abc import Callable
from multiprocessing.connection import Connection, wait
from pathlib import Path
from typing import Protocol

from flwr.app import Error, Message

from fedmerge.engine.identity import CRASHED, RAISED
from fedmerge.engine.nursery import Nursery
from fedmerge.wire.lifetime import expired

logger = logging.getLogger(__name__)

Serve = Callable[[Message], Message]


class Executor(Protocol):
    """Takes messages and gives replies, in whatever order they are ready."""

    def submit(self, message: Message) -> None:
        """Take a message; its reply comes out of `collect`."""

    def collect(self, timeout_seconds: float) -> list[Message]:
        """The replies that are ready; waits for one where none is, at most so long."""

    def close(self) -> None:
        """Stop everything that was started, at once."""


def error_reply(message: Message, code: int, reason: str) -> Message:
    """The reply that Flower's own runtimes give where an app raised or died."""
    return Message(Error(code=code, reason=reason), reply_to=message)


def guarded(serve: Serve) -> Serve:
    """`serve`, with an error reply where it raises: one bad silo never ends a run."""

    def answer(message: Message) -> Message:
        try:
            return serve(message)
        except Exception as err:
            logger.exception("a client app raised")
            return error_reply(message, RAISED, f"{type(err).__name__}: {err}")

    return answer


class InProcess:
    """Answers in this process, one message each time that replies are asked for."""

    def __init__(self, serve: Serve) -> None:
        """Answer with `serve`."""
        self._serve = guarded(serve)
        self._queue: deque[Message] = deque()

    def submit(self, message: Message) -> None:
        """Take a message."""
        self._queue.append(message)

    def collect(self, timeout_seconds: float) -> list[Message]:
        """Answer the oldest message that is still wanted, however long it takes: it can't be interrupted."""
        while self._queue:
            message = self._queue.popleft()
            if not expired(message):
                return [self._serve(message)]
        return []

    def close(self) -> None:
        """Forget what was not answered."""
        self._queue.clear()


class Forked:
    """Answers in forked processes, each serving one message at a time.

    No thread is used here: work is handed out whenever messages are submitted or replies collected. A worker
    that dies gives an error reply for the message it had, and another takes its place.

    Args:
        serve: answers a message; with this process's memory as it is now.
        workers: how many processes.
        key: what a message is about. Messages about the same go to the same worker while it is idle: it has
            the silo's rows encoded already.
    """

    def __init__(self, serve: Serve, workers: int, key: Callable[[Message], str] = lambda _: "") -> None:
        """Fork the processes."""
        self._key = key
        self._queue: deque[Message] = deque()
        self._busy: dict[Connection, Message] = {}
        self._served: dict[str, Connection] = {}
        self._nursery = Nursery(guarded(serve))
        try:
            self._idle = [self._nursery.worker() for _ in range(workers)]
        except BaseException:
            self._nursery.close()
            raise

    def submit(self, message: Message) -> None:
        """Take a message, and hand it to an idle worker."""
        self._queue.append(message)
        self._hand_out()

    def collect(self, timeout_seconds: float) -> list[Message]:
        """The replies that are ready; waits for one where none is, at most so long."""
        ready = wait(list(self._busy), timeout_seconds) if self._busy else []
        replies = [self._receive(connection) for connection in ready if isinstance(connection, Connection)]
        self._hand_out()
        return replies

    def close(self) -> None:
        """Kill the workers, whatever they are doing."""
        self._queue.clear()
        for connection in (*self._idle, *self._busy):
            connection.close()
        self._idle, self._busy = [], {}
        self._nursery.close()

    def _hand_out(self) -> None:
        self._queue = deque(message for message in self._queue if not expired(message))
        while self._queue and self._idle:
            connection, message = self._match()
            try:
                connection.send(message)
            except OSError:  # it died while idle: nobody had this message yet
                self._replace(connection)
            else:
                self._idle.remove(connection)
                self._queue.remove(message)
                self._busy[connection] = message
                self._served[self._key(message)] = connection

    def _match(self) -> tuple[Connection, Message]:
        """An idle worker, and a message that it should have: one of its own, a new one, or the oldest."""
        for message in self._queue:
            known = self._served.get(self._key(message))
            if known in self._idle:
                return known, message
        new = (message for message in self._queue if self._key(message) not in self._served)
        return self._idle[0], next(new, self._queue[0])

    def _receive(self, connection: Connection) -> Message:
        message = self._busy.pop(connection)
        try:
            reply: Message = connection.recv()
        except (EOFError, OSError):
            self._replace(connection)
            return error_reply(message, CRASHED, "the worker process died")
        self._idle.append(connection)
        return reply

    def _replace(self, connection: Connection) -> None:
        connection.close()
        self._idle = [idle for idle in self._idle if idle is not connection]
        self._served = {key: worker for key, worker in self._served.items() if worker is not connection}
        self._idle.append(self._nursery.worker())


def can_fork(threads: int = 1) -> bool:
    """Whether forking is safe: no other Python thread may hold a lock, and macOS's libraries dislike it.

    Args:
        threads: that a fork computes on. With more than one, a pool of OpenMP threads that lives here would
            be waited for in the fork, where it does not exist.
    """
    if not hasattr(os, "fork") or sys.platform == "darwin" or threading.active_count() > 1:
        return False
    tasks = Path("/proc/self/task")
    return threads == 1 or (tasks.is_dir() and len(list(tasks.iterdir())) == 1)
