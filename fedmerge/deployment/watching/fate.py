"""What became of a run, from the status that Flower gives it."""

from __future__ import annotations

from enum import StrEnum

from fedmerge.server.storage import IN_USE
from fedmerge.server_app.verdict import verdict_of


class Fate(StrEnum):
    """What became of a run.

    Only a lost run is worth another attempt: one that failed would come to the same verdict again, and one
    that was stopped was stopped by somebody.
    """

    ALIVE = "alive"
    COMPLETED = "completed"
    FAILED = "failed"
    STOPPED = "stopped"
    LOST = "lost"


def fate_of(status: str, details: str) -> Fate:
    """The fate that a status means.

    A run that was cut off is "finished:failed" in Flower as well, as is one that gave up by itself; the
    details tell them apart. "No heartbeat received from the task": the ServerApp was killed, or the SuperLink
    was away. "Task failed with unknown error.": the ServerApp was asked to end. An exception that is none of
    fedmerge's own comes from Flower, the network or the machine.

    Args:
        status: "pending", "starting", "running", "finished:completed", "finished:failed", ...
        details: what Flower says besides.

    Example:
        >>> fate_of("finished:failed", "No heartbeat received from the task")
        <Fate.LOST: 'lost'>
        >>> fate_of("finished:failed", "ServerApp failed with exception: ConfigError: train.steps = -1: ...")
        <Fate.FAILED: 'failed'>
    """
    if not status.startswith("finished"):
        return Fate.ALIVE
    if status == "finished:completed":
        return Fate.COMPLETED
    if status == "finished:stopped":
        return Fate.STOPPED
    verdict = verdict_of(details)
    # The process of the attempt before had not ended yet; the next attempt finds the folder free.
    return Fate.FAILED if verdict and not verdict.sentence.endswith(IN_USE) else Fate.LOST
