"""MergeStrategy: the round loop as a Flower strategy."""

from __future__ import annotations

import logging
import time
from collections.abc import Iterable
from dataclasses import replace

from flwr.app import ArrayRecord, ConfigRecord, Message, MetricRecord
from flwr.serverapp import Grid
from flwr.serverapp.strategy import Strategy

from fedmerge.adapters import Adapter, Lora
from fedmerge.errors import RoundFailed
from fedmerge.rules import Rule
from fedmerge.server.absence import Absences
from fedmerge.server.asking import Asked, Asker
from fedmerge.server.books import Books, Keeping
from fedmerge.server.counterfactuals import Counterfactuals, Scorer
from fedmerge.server.course import Course
from fedmerge.server.evaluating import evaluation, others
from fedmerge.server.folder import RunFolder
from fedmerge.server.gathering import Opened, Terms, gather
from fedmerge.server.guard import Admitted, Replies
from fedmerge.server.membership import Membership
from fedmerge.server.merging import Merger
from fedmerge.server.observer import Observer, Silent
from fedmerge.server.plan import Plan
from fedmerge.server.report import RoundReport, average
from fedmerge.server.returning import Returns
from fedmerge.server.roster import Roster
from fedmerge.server.saved import Gathered, Saved
from fedmerge.server.second_chance import SecondChance
from fedmerge.server.settings import StrategySettings
from fedmerge.server.standing import Scored, Standing
from fedmerge.wire.protocol import Instruction
from fedmerge.wire.records import count_bytes

logger = logging.getLogger(__name__)


class MergeStrategy(Strategy):
    """Aggregate by a merge rule, in a space; stands where Flower's FedAvg stood.

    A reply is checked as it comes in, and dropped by name and reason where it is not what was asked for; the
    round goes on while the quorum holds. Replies are sorted by silo before any arithmetic.

    Args:
        rule: a rule, or its text: "ties(density=0.2)".
        space: where deltas are compared: "factors()" or "product()".
        weighting: see `StrategySettings`, as the next ten.
        weight_cap: share of the total in (0, 1]; 0 is without a cap.
        server_optimizer: what is done with the merged step.
        shadows: further merges of a round's replies: "rule @ space; rule @ space".
        fraction: share of the silos that a round asks, in (0, 1].
        quorum: share of the asked silos whose replies a round needs, in (0, 1].
        deadline_seconds: how long a silo's messages live; give the same to ``start(timeout=...)``.
        wait_seconds: how long a round waits for nodes.
        guard: what is done with deltas that are much too long, or point against the others.
        gate: what sends a broadcast back; it acts on scores in train replies ("received/validation/loss").
        shadow_scoring: where shadows are scored: "final", "server" or "silos".
        replies: "delta" (trained minus received) or "weights" (what was trained, as Flower's own apps send).
        encoding: how deltas travel: "exact", "bf16" or "fp16".
        roster: the known silos; None asks whatever nodes are connected, and takes the names that they reply
            with.
        lora: settings of the LoRA pairs; spaces other than factors() need them.
        seed: of the sampling and of the rule's randomness.
        fingerprint: of the base that the silos must have; "" takes any.
        instruction: what each train message asks for besides: epochs or steps, splits, labels.
        min_nodes: nodes to wait for where there is no roster.
        evaluate: whether each round ends with evaluate messages to all nodes; None where there is no roster.
            Fedmerge's own silos score the broadcast before they train, and need none.
        expects_gpu: stop if silos compute on the CPU: the server sees a GPU and train.device leaves the
            choice.
        device: where the merge is computed: "auto", "cpu" or "cuda".
        record: whether every admitted delta is written to the folder, with the statistics beside it; or
            which are, and for how long.
        observer: who watches.
        folder: where each round is written.
        scorer: scores adapters on the server's rows, for ``shadow_scoring="server"``.
        membership: what a node must bring along that comes later as a silo of the roster.

    What a rule needs besides deltas, as `fisher` does, the config of each train message asks for under
    "statistics"; `fedmerge.wire.protocol.reply_content` builds the reply with it.

    Raises:
        RuleError: a rule, space or optimizer that can't be read.
        ConfigError: a setting out of range.

    Example:
        >>> strategy = MergeStrategy("ties(density=0.2)", replies="weights", quorum=0.5)
        >>> str(strategy.plan.rule)
        'ties(density=0.2)'
    """

    def __init__(
        self,
        rule: str | Rule = "fedavg()",
        space: str = "factors()",
        *,
        weighting: str = "examples",
        weight_cap: float = 0.0,
        server_optimizer: str = "none()",
        shadows: str = "",
        fraction: float = 1.0,
        quorum: float = 1.0,
        deadline_seconds: float = 3600.0,
        wait_seconds: float = 300.0,
        guard: str = "finite()",
        gate: str = "silos(share=0.5, drop=0.02)",
        shadow_scoring: str = "final",
        replies: Replies = "delta",
        encoding: str = "exact",
        roster: Roster | None = None,
        lora: Lora | None = None,
        seed: int = 0,
        fingerprint: str = "",
        instruction: Instruction | None = None,
        min_nodes: int = 2,
        evaluate: bool | None = None,
        expects_gpu: bool = False,
        device: str = "auto",
        record: bool | Keeping = False,
        observer: Observer | None = None,
        folder: RunFolder | None = None,
        scorer: Scorer | None = None,
        membership: Membership | None = None,
    ) -> None:
        """Parse and check everything, before a round is spent."""
        self.settings = StrategySettings(
            str(rule), space, weighting, weight_cap, server_optimizer, shadows,
            fraction, quorum, deadline_seconds, wait_seconds, guard, gate, shadow_scoring,
        )  # fmt: skip
        self.plan = Plan.of(self.settings, None if isinstance(rule, str) else rule)
        self.plan.check_lora(lora)
        self.lora = lora
        needs = tuple(sorted(self.plan.needs))
        order = replace(instruction or Instruction(), seed=seed, fingerprint=fingerprint, statistics=needs)
        returns = Returns(membership or Membership(fingerprint=fingerprint))
        self.asker = Asker(self.settings, order, roster, min_nodes, returns)
        self.absences = Absences()
        self.evaluate = roster is None if evaluate is None else evaluate
        self.terms = Terms(
            encoding, replies, fingerprint, self.plan.outliers, expects_gpu,
            named=roster is not None, shared=roster is not None and roster.shared, needs=self.plan.needs,
            caps=roster.caps if roster is not None else {},
        )  # fmt: skip
        self.merger = Merger(self.plan, seed, device)
        self.counterfactuals = Counterfactuals(self.merger, shadow_scoring, scorer)
        self.standing = Standing(self.plan.gate)
        self.observer: Observer = observer or Silent()
        self.books = Books(self.observer, folder, record if isinstance(record, Keeping) else Keeping(record))
        self.rounds, self.refused = self.books.rounds, self.books.refused
        self.course = Course(self.settings, self.merger, self.standing, self.counterfactuals, self.books)
        self._opened: Opened | None = None

    # What Flower calls, in its order

    def summary(self) -> None:
        """Log what will be done."""
        plan, settings = self.plan, self.settings
        logger.info("rule %s, space %s, server optimizer %s", plan.rule, plan.space, plan.optimizer)
        logger.info("asks %g of the silos, needs %g of those", settings.fraction, settings.quorum)

    def configure_train(
        self, server_round: int, arrays: ArrayRecord, config: ConfigRecord, grid: Grid
    ) -> Iterable[Message]:
        """Draw the round's silos, wait for their nodes, and make their messages.

        Raises:
            RoundFailed: too few nodes are connected after `wait_seconds`, or the rule can't merge as many
                replies as may come.
            WireError: `arrays` is no record of tensors.
        """
        began = time.monotonic()
        self.course.close()
        self.counterfactuals.take(None)
        self.course.receive(arrays, self.lora)
        self.observer.phase("waiting for nodes")
        asked = self.asker.choose(grid, server_round)
        self.plan.check_names(None if self.asker.roster is None else asked.silos)
        self.plan.check_clients(len(asked.silos), asked.need)
        messages = self.asker.train(asked, arrays, config, server_round)
        report = RoundReport(server_round, asked.silos)
        report.seconds["wait"] = time.monotonic() - began
        report.bytes_down = count_bytes(*(message.content for message in messages))
        sent = tuple((message.metadata, silo) for message, silo in zip(messages, asked.nodes, strict=True))
        end = time.monotonic() + self.settings.deadline_seconds
        again = SecondChance(self.asker, grid, asked, arrays, config, report, end)
        self._opened = Opened(asked, sent, report, time.monotonic(), again, self.absences)
        self.observer.round_started(server_round, list(asked.silos))
        self.observer.phase("training")
        return messages

    def aggregate_train(
        self, server_round: int, replies: Iterable[Message]
    ) -> tuple[ArrayRecord | None, MetricRecord | None]:
        """Check the replies as they come in, and merge those admitted.

        Raises:
            RoundFailed: too few replies for the quorum, or a merge that failed; the broadcast is as it was.
        """
        opened, received = self._opened, self.broadcast
        if opened is None or received is None or opened.report.round != server_round:
            raise RoundFailed(f"round {server_round} was not opened: configure_train comes first")
        self._opened = None
        try:
            admitted = gather(opened, received, replies, self.terms, self.observer)
        except RoundFailed as failure:
            self.books.fail(opened.report, failure)
            raise
        self.books.write_replies(opened.report, admitted)
        self.course.settle(opened, received, admitted)
        return self.arrays, average([a.metrics for a in admitted], [a.examples for a in admitted])

    def configure_evaluate(
        self, server_round: int, arrays: ArrayRecord, config: ConfigRecord, grid: Grid
    ) -> Iterable[Message]:
        """Ask the round's silos to score its shadows, all nodes the new broadcast: where it is wanted."""
        plain = self.asker.evaluate(grid, arrays, config, server_round) if self.evaluate else []
        if self.course.awaiting is None:
            return plain
        self.observer.phase("scoring the shadows")
        probes = self.counterfactuals.ask(arrays, config, self.asker, self.course.awaiting)
        return [*probes, *others(plain, probes)]

    def aggregate_evaluate(self, server_round: int, replies: Iterable[Message]) -> MetricRecord | None:
        """The mean of each metric over the nodes, weighted by examples; nodes that fail are left out."""
        try:
            found = evaluation(server_round, replies, self.counterfactuals.hear)
        except Exception:
            self.course.close()
            raise
        self.course.close()  # not when it is interrupted: a run that goes on asks for the scores again
        return found

    # A run that was interrupted

    def restore(self, saved: Saved) -> None:
        """Stand where an interrupted run stood; its next round waits for all nodes, as a first one does."""
        self.course.restore(saved)
        for report in saved.reports:
            self.absences.recall(report.asked, report.missing_since)
        self.asker = replace(self.asker, first=saved.round + 1)

    def merge_again(self, gathered: Gathered, grid: Grid) -> None:
        """Close a round from the replies that were written down; no silo is asked for another.

        Raises:
            RoundFailed: as `aggregate_train` says.
        """
        report = gathered.report
        assert self.broadcast is not None  # restored
        scored = self.settings.shadow_scoring == "silos" and self.plan.shadows
        asked = self.asker.choose(grid, report.round) if scored else Asked(report.asked, {}, 0)
        opened = Opened(asked, (), report, time.monotonic())
        self.course.settle(opened, self.broadcast, gathered.replies)

    # What is read afterwards

    @property
    def broadcast(self) -> Adapter | None:
        """What the last round made; None before the first."""
        return self.course.broadcast

    @property
    def arrays(self) -> ArrayRecord:
        """The same as Flower's record."""
        assert self.course.record is not None  # a round was opened, or the run restored
        return self.course.record

    @property
    def last_replies(self) -> list[Admitted]:
        """The admitted replies of the last round, sorted by silo; empty while a round is open."""
        return self.counterfactuals.closed.replies if self.counterfactuals.closed else []

    @property
    def shadow_adapters(self) -> dict[str, Adapter]:
        """What each shadow makes of the last round's replies, by its name; none where they were discarded."""
        return self.counterfactuals.adapters

    @property
    def best(self) -> Scored | None:
        """Of the broadcasts that the gate let pass, the one with the best scores."""
        return self.standing.best
