"""Where the rounds of a run have come to, and how the replies of one more move it on."""

from __future__ import annotations

import time
from dataclasses import dataclass, replace

from flwr.app import ArrayRecord

from fedmerge.adapters import Adapter, Lora
from fedmerge.errors import RoundFailed
from fedmerge.server.asking import Asked
from fedmerge.server.books import Books
from fedmerge.server.counterfactuals import Counterfactuals
from fedmerge.server.gathering import Opened
from fedmerge.server.guard import Admitted
from fedmerge.server.merging import Closed, Merger
from fedmerge.server.report import RoundReport
from fedmerge.server.saved import Saved
from fedmerge.server.scores import summarize
from fedmerge.server.settings import StrategySettings
from fedmerge.server.standing import VALIDATION, Standing
from fedmerge.server.weighting import weights_of
from fedmerge.wire.protocol import RECEIVED
from fedmerge.wire.records import shared_record, to_record, view_record


@dataclass
class Course:
    """All that one round hands on to the next.

    Args:
        settings: weighting and cap are used.
        merger: merges, and has the server optimizer's state.
        standing: judges.
        counterfactuals: the shadows.
        books: write the rounds down.
        broadcast: what the next round receives; None before the first.
        record: the same as Flower's record.
    """

    settings: StrategySettings
    merger: Merger
    standing: Standing
    counterfactuals: Counterfactuals
    books: Books
    broadcast: Adapter | None = None
    record: ArrayRecord | None = None
    _unclosed: tuple[RoundReport, Asked] | None = None

    def receive(self, arrays: ArrayRecord, lora: Lora | None) -> None:
        """Read the adapter that Flower hands in, unless it is the one that we made."""
        if arrays is self.record:
            return
        first = self.broadcast is None
        self.broadcast, self.record = Adapter(view_record(arrays), lora), arrays
        if first:
            self.books.begin(self.broadcast)

    def restore(self, saved: Saved) -> None:
        """Stand where an interrupted run stood."""
        self.broadcast, self.merger.state = saved.broadcast, saved.optimizer
        self.record = to_record(saved.broadcast.tensors)
        self.standing.good, self.standing.best = saved.good, saved.best
        self.counterfactuals.take(saved.closed)
        self.books.restore(saved.reports, saved.links)

    def settle(self, opened: Opened, received: Adapter, replies: list[Admitted]) -> None:
        """Judge and merge a round's replies, and close it unless its silos have its shadows to score yet.

        Raises:
            RoundFailed: the merge failed; the broadcast is as it was.
        """
        report = opened.report
        try:
            if not self._rejects(report, received, replies):
                self._merge(report, received, replies)
        except RoundFailed as failure:
            self.books.fail(report, failure)
            raise
        self.counterfactuals.begin(self.broadcast, report)
        self._unclosed = report, opened.asked
        if not self.counterfactuals.awaited:
            self.close()

    @property
    def awaiting(self) -> Asked | None:
        """Whom the round asked whose shadows are to be scored before it is closed."""
        return self._unclosed[1] if self._unclosed is not None else None

    def close(self) -> None:
        """Write a settled round down, and report it; what its silos said of its shadows stands there then."""
        if self._unclosed is None or self.broadcast is None:
            return
        report, self._unclosed = self._unclosed[0], None
        if self.counterfactuals.awaited:
            self.counterfactuals.finish(report)
        self.books.close(report, self.broadcast, self.merger.state, self.standing)

    def _rejects(self, report: RoundReport, received: Adapter, replies: list[Admitted]) -> bool:
        """Whether the silos' scores send their broadcast back; then the last good one is the next again."""
        metrics = {reply.silo: reply.metrics for reply in replies}
        report.received = summarize(metrics, RECEIVED, VALIDATION)
        report.rejected = self.standing.judge(report.round, received, self.merger.state, metrics)
        good = self.standing.good
        if not report.rejected or good is None:
            return False
        report.admit(replies, [0.0] * len(replies))
        self.broadcast, self.merger.state = good.adapter, good.optimizer
        self.record = to_record(good.adapter.tensors)
        return True

    def _merge(self, report: RoundReport, received: Adapter, replies: list[Admitted]) -> None:
        """Merge the admitted replies into the next broadcast."""
        self.books.observer.phase("merging")
        began = time.monotonic()
        settings, examples = self.settings, [reply.examples for reply in replies]
        weights = weights_of(examples, settings.weighting, settings.weight_cap)
        report.admit(replies, weights)
        closed = Closed(report.round, received, replies, weights)
        merged, report.merge = self.merger.step(closed)
        self.counterfactuals.take(closed)
        tensors = dict(merged.tensors)
        merged = replace(merged, tensors={})
        self.record, tensors = shared_record(tensors)
        self.broadcast = replace(merged, tensors=tensors)
        report.seconds["merge"] = time.monotonic() - began
