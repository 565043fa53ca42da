"""What is written down of each round: deltas and checkpoint to the folder, the report to who watches."""

from __future__ import annotations

import logging
import time
from collections.abc import Sequence
from dataclasses import dataclass, field

from fedmerge.adapters import Adapter
from fedmerge.adapters.optimizers import OptimizerState
from fedmerge.server.folder import RunFolder
from fedmerge.server.guard import Admitted, Refusal
from fedmerge.server.observer import Observer
from fedmerge.server.report import RoundReport

logger = logging.getLogger(__name__)


@dataclass
class Books:
    """Keeps the rounds of one run.

    Args:
        observer: is told of each round.
        folder: where rounds are written; None writes none.
        record: whether admitted deltas are written, too.
        rounds: the reports so far.
        refused: the replies refused so far.
    """

    observer: Observer
    folder: RunFolder | None = None
    record: bool = False
    rounds: list[RoundReport] = field(default_factory=list)
    refused: list[Refusal] = field(default_factory=list)

    def begin(self, initial: Adapter) -> None:
        """Write what round 1 receives."""
        if self.folder is not None:
            self.folder.write_round(0, initial)

    def write_deltas(self, report: RoundReport, replies: Sequence[Admitted]) -> None:
        """Write the deltas down before they are merged, where that is wanted."""
        began = time.monotonic()
        if self.folder is not None and self.record:
            for reply in replies:
                self.folder.write_delta(report.round, reply.silo, reply.delta, reply.statistics)
        report.seconds["write"] = time.monotonic() - began

    def write_round(self, report: RoundReport, broadcast: Adapter, optimizer: OptimizerState | None) -> None:
        """Write what a round ended with: what it made, or where its scores sent the run back to."""
        began = time.monotonic()
        if self.folder is not None:
            state: dict[str, object] = {
                "silos": {silo: entry["weight"] for silo, entry in report.admitted.items()}
            }
            state |= {"rejected": report.rejected} if report.rejected else {}
            self.folder.write_round(report.round, broadcast, optimizer=optimizer, state=state)
        report.seconds["write"] = report.seconds.get("write", 0.0) + time.monotonic() - began

    def publish(self, report: RoundReport) -> None:
        """Report a round, loudly where it was rejected, or silos are missing."""
        self.rounds.append(report)
        self.refused.extend(report.refused)
        level = logging.WARNING if report.rejected or report.failed or report.missing else logging.INFO
        logger.log(level, "%s", report.failed or report.sentence())
        self.observer.round_closed(report.to_dict())
