"""What a watcher shows of itself to whoever asks while it works."""

from __future__ import annotations

from dataclasses import dataclass, field
from enum import StrEnum

from fedmerge.deployment.figures import Figures


class State(StrEnum):
    """What the watched run is doing."""

    SUBMITTING = "submitting"
    WAITING = "waiting"
    RUNNING = "running"
    LOST = "lost"
    COMPLETED = "completed"
    FAILED = "failed"


@dataclass(frozen=True)
class View:
    """One moment of a watch; replaced as a whole, so that threads may read it.

    Args:
        state: of the run.
        sentence: why, where there is something to say.
        run: Flower's id of the last attempt; "" before the first.
        resubmissions: attempts after the first.
        since: unix time at which the last attempt was submitted or found.
        figures: what the run has written down.
    """

    state: State = State.SUBMITTING
    sentence: str = ""
    run: str = ""
    resubmissions: int = 0
    since: float = 0.0
    figures: Figures = field(default_factory=Figures)
