"""What is written down of each round: replies and state to the folder, the report to who watches."""

from __future__ import annotations

import logging
import time
from collections.abc import Sequence
from dataclasses import dataclass, field

from fedmerge.adapters import Adapter
from fedmerge.adapters.optimizers import OptimizerState
from fedmerge.errors import RoundFailed
from fedmerge.server import exact
from fedmerge.server.chain import Link
from fedmerge.server.folder import RunFolder
from fedmerge.server.forms import standing_form
from fedmerge.server.guard import Admitted, Refusal
from fedmerge.server.observer import Observer
from fedmerge.server.report import RoundReport
from fedmerge.server.retention import Retention
from fedmerge.server.standing import Standing

logger = logging.getLogger(__name__)


@dataclass(frozen=True)
class Keeping:
    """Which admitted replies are written to the run's folder.

    Args:
        record: those of every round, to stay there.
        until_closed: those of a round until it is closed: a run that ends in between goes on without asking
            the silos again.
        until_finished: the round whose replies stay until the run is finished, as they are needed after it;
            0: none.
        rounds: of how many last rounds the tensors stay that a resumed run needs; 0: of all.
    """

    record: bool = False
    until_closed: bool = False
    until_finished: int = 0
    rounds: int = 0


@dataclass
class Books:
    """Keeps the rounds of one run.

    Args:
        observer: is told of each round.
        folder: where rounds are written; None writes none.
        keeping: which admitted replies are written, too.
        rounds: the reports so far.
        refused: the replies refused so far.
    """

    observer: Observer
    folder: RunFolder | None = None
    keeping: Keeping = Keeping()
    rounds: list[RoundReport] = field(default_factory=list)
    refused: list[Refusal] = field(default_factory=list)
    retention: Retention = field(init=False)

    def __post_init__(self) -> None:
        """Nothing is closed yet."""
        self.retention = Retention(self.keeping.rounds)

    def begin(self, initial: Adapter) -> None:
        """Write what round 1 receives."""
        if self.folder is not None:
            self.folder.write_round(0, initial)

    def restore(self, reports: Sequence[RoundReport], links: Sequence[Link]) -> None:
        """Know the rounds that were closed before the run was interrupted."""
        gone = self.retention.closed(*((link.round, link.state) for link in links))
        if self.folder is not None:
            self.folder.forget_tensors(gone)
        self.rounds.extend(reports)
        self.refused.extend(refusal for report in reports for refusal in report.refused)

    def write_replies(self, report: RoundReport, replies: Sequence[Admitted]) -> None:
        """Write the replies of a round down before they are judged and merged, where that is wanted."""
        began = time.monotonic()
        if self.folder is not None and (self.keeping.record or self.keeping.until_closed):
            self.folder.write_replies(report.round, replies, report.to_dict())
        report.seconds["write"] = time.monotonic() - began

    def close(
        self, report: RoundReport, broadcast: Adapter, optimizer: OptimizerState | None, standing: Standing
    ) -> None:
        """Write down what a round ended with, and report it.

        Args:
            report: of the round.
            broadcast: what it made, or where its scores sent the run back to.
            optimizer: state of the server optimizer.
            standing: after the round.
        """
        began = time.monotonic()
        if self.folder is not None:
            state: dict[str, object] = {
                "silos": {silo: entry["weight"] for silo, entry in report.admitted.items()}
            }
            state |= {"rejected": report.rejected} if report.rejected else {}
            state["report"] = exact.timeless(report.to_dict())
            state["standing"] = standing_form(standing, broadcast)
            recorded = self.keeping.record and not report.rejected  # those are merged nowhere
            self.folder.write_round(
                report.round, broadcast, optimizer=optimizer, state=state, recorded=recorded
            )
            self.folder.forget_tensors(self.retention.closed((report.round, state)))
            if report.rejected or report.round != self.keeping.until_finished:
                self.folder.forget_replies(report.round, recorded=recorded)
        report.seconds["write"] = report.seconds.get("write", 0.0) + time.monotonic() - began
        self.publish(report)

    def fail(self, report: RoundReport, failure: RoundFailed) -> None:
        """Report a round that can't be closed."""
        report.failed = str(failure)
        self.publish(report)

    def publish(self, report: RoundReport) -> None:
        """Report a round, loudly where it was rejected, or silos are missing."""
        self.rounds.append(report)
        self.refused.extend(report.refused)
        level = logging.WARNING if report.rejected or report.failed or report.missing else logging.INFO
        logger.log(level, "%s", report.failed or report.sentence())
        self.observer.round_closed(report.to_dict())
