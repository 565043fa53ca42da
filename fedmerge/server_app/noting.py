"""The round that the server's log lines belong to."""

from __future__ import annotations

from collections.abc import Sequence

from fedmerge import logs
from fedmerge.server.observer import Silent


class Noting(Silent):
    """Tells the log which round goes on."""

    def round_started(self, round: int, silos: Sequence[str]) -> None:
        """From here on lines are of this round."""
        logs.note(round=round)
