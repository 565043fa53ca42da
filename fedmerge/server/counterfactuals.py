"""One-step counterfactuals: what other rules would have made of a round's replies.

No silo trained on from it. The shadows of a plan are merged from the very replies of a round and scored
beside the merged adapter, on rows that the server holds or, where that was asked for, at the silos. They
take no part in the run: one that fails is reported with its error, and the run's bits are those of a run
without shadows.
"""

from __future__ import annotations

import logging
import time
from collections.abc import Callable, Mapping
from dataclasses import dataclass, field
from typing import Any

from flwr.app import ArrayRecord, ConfigRecord, Message, Metadata

from fedmerge.adapters import Adapter
from fedmerge.errors import ConfigError, WireError
from fedmerge.server.asking import Asked, Asker
from fedmerge.server.merging import Closed, Merger
from fedmerge.server.reading import read_scores
from fedmerge.server.report import RoundReport
from fedmerge.server.scores import Summary, metric_of, summarize
from fedmerge.server.standing import VALIDATION
from fedmerge.wire.protocol import RECEIVED
from fedmerge.wire.records import count_bytes, to_record

logger = logging.getLogger(__name__)

MERGED = "merged"
SERVER = "server"

Scorer = Callable[[Mapping[str, Adapter]], Mapping[str, float]]
"""Scores adapters on rows that the server holds: by name in, "<name>/validation/<figure>" -> value out."""


@dataclass(frozen=True)
class Shadowed:
    """What the shadows made of one round's replies.

    Args:
        adapters: by shadow.
        errors: why a shadow made none.
    """

    adapters: dict[str, Adapter] = field(default_factory=dict)
    errors: dict[str, str] = field(default_factory=dict)


def shadowed(merger: Merger, closed: Closed) -> Shadowed:
    """Merge a round's replies by each shadow of the plan."""
    made = Shadowed()
    for shadow in merger.plan.shadows:
        try:
            made.adapters[shadow.name] = merger.merged(closed, shadow.rule, shadow.space).adapter
        except Exception as err:  # a comparison must not end the run, whatever a rule does
            logger.warning("round %d: shadow %s is left out: %s", closed.round, shadow.name, err)
            made.errors[shadow.name] = _said(err)
    return made


@dataclass
class Counterfactuals:
    """Merges the shadows of a round, and has them scored where `scoring` says.

    Args:
        merger: with the plan.
        scoring: "final" (not in rounds), "server" or "silos".
        scorer: scores on the server's rows; "server" needs it.
        closed: what the last round merged; None while a round is open, and where it was rejected.

    Raises:
        ConfigError: "server" without a scorer.
    """

    merger: Merger
    scoring: str = "final"
    scorer: Scorer | None = None
    closed: Closed | None = None
    _made: Shadowed | None = None
    _asked: _Asked | None = None

    def __post_init__(self) -> None:
        if self.scoring == "server" and self.scorer is None:
            raise ConfigError(
                "strategy.shadow-scoring is 'server', and nothing scores there: name rows that the server "
                "holds in data.server (in Python: scorer=)"
            )

    @property
    def adapters(self) -> dict[str, Adapter]:
        """What each shadow makes of the round's replies, by its name; merged when first asked for."""
        if self.closed is None:
            return {}
        if self._made is None:
            self._made = shadowed(self.merger, self.closed)
        return self._made.adapters

    @property
    def awaited(self) -> bool:
        """Whether the round's silos have its shadows to score before it can be reported."""
        return self.scoring == "silos" and self.closed is not None and bool(self.merger.plan.shadows)

    def take(self, closed: Closed | None) -> None:
        """What a round merged; None as a round begins, so that the last one's deltas can be freed."""
        self.closed, self._made, self._asked = closed, None, None

    def begin(self, merged: Adapter | None, report: RoundReport) -> None:
        """The round is merged; where the server scores what was merged, it does so now."""
        if (
            self.closed is not None
            and merged is not None
            and self.scoring == "server"
            and self.merger.plan.shadows
        ):
            began = time.monotonic()
            metrics, errors = self._score({MERGED: merged, **self.adapters})
            self._note(report, {SERVER: metrics}, errors)
            report.seconds["shadows"] = time.monotonic() - began

    def ask(self, arrays: ArrayRecord, config: ConfigRecord, asker: Asker, asked: Asked) -> list[Message]:
        """An evaluate message for each silo whose reply was merged: the next broadcast, and the shadows.

        Args:
            arrays: the next broadcast.
            config: of the user's own.
            asker: makes the messages.
            asked: whom the round asked.
        """
        if not self.awaited or self.closed is None:
            return []
        began = time.monotonic()
        candidates = {name: to_record(adapter.tensors) for name, adapter in self.adapters.items()}
        merged = {reply.silo for reply in self.closed.replies}
        homes = {silo: node for silo, node in asked.nodes.items() if silo in merged or asker.roster is None}
        messages = asker.probe(homes, arrays, candidates, config, self.closed.round)
        sent = tuple((message.metadata, silo) for message, silo in zip(messages, homes, strict=True))
        self._asked = _Asked(sent, count_bytes(*(message.content for message in messages)), began)
        return messages

    def hear(self, reply: Message) -> None:
        """Take what a silo measured; a reply to another message is passed over."""
        if self._asked is not None:
            self._asked.hear(reply)

    def finish(self, report: RoundReport) -> None:
        """Put what the silos measured into the round's report."""
        asked = self._asked or _Asked((), 0, time.monotonic())
        self._note(report, asked.metrics, {})
        report.shadow_bytes = {"down": asked.bytes_down, "up": asked.bytes_up}
        report.seconds["shadows"] = time.monotonic() - asked.since
        self._asked = None

    def _score(self, candidates: Mapping[str, Adapter]) -> tuple[dict[str, float], dict[str, str]]:
        """Each candidate by itself, so that one which can't be scored leaves the others theirs."""
        assert self.scorer is not None  # checked when this was made
        metrics: dict[str, float] = {}
        errors: dict[str, str] = {}
        for name, adapter in candidates.items():
            try:
                metrics |= self.scorer({name: adapter})
            except Exception as err:  # likewise
                logger.warning("shadow scoring at the server: %s has no score: %s", name, err)
                errors[name] = _said(err)
        return metrics, errors

    def _note(
        self, report: RoundReport, metrics: Mapping[str, Mapping[str, float]], errors: Mapping[str, str]
    ) -> None:
        """The rows of the report, the merged adapter first."""
        made = self._made or Shadowed()
        keys = [key for measured in metrics.values() for key in measured]
        metric = metric_of(keys, MERGED, VALIDATION)
        for name in (MERGED, *(shadow.name for shadow in self.merger.plan.shadows)):
            error = made.errors.get(name) or errors.get(name)
            summary = None if error else summarize(metrics, name, VALIDATION, metric)
            report.shadows[name] = self._row(summary) if summary else {"error": error or "nobody scored it"}

    def _row(self, summary: Summary) -> dict[str, Any]:
        """One candidate's scores; the server's stands by itself."""
        silos = dict(summary.silos)
        where = {SERVER: silos[SERVER]} if self.scoring == "server" else {"silos": silos}
        return {"metric": summary.metric, "mean": summary.mean, "worst": summary.worst, **where}


@dataclass
class _Asked:
    """The evaluate messages of a round, and what came back."""

    sent: tuple[tuple[Metadata, str], ...]
    bytes_down: int
    since: float
    bytes_up: int = 0
    metrics: dict[str, dict[str, float]] = field(default_factory=dict)

    def hear(self, reply: Message) -> None:
        """The scores of a reply to one of the messages; the first counts."""
        silos = {metadata.message_id: silo for metadata, silo in self.sent}  # ids are known once pushed
        silo = silos.get(reply.metadata.reply_to_message_id)
        if silo is None or silo in self.metrics:
            return
        if reply.has_content():
            self.bytes_up += count_bytes(reply.content)
        try:
            self.metrics[silo] = _renamed(read_scores(reply))
        except WireError:  # whoever hears evaluations logs it
            return


def _renamed(metrics: Mapping[str, float]) -> dict[str, float]:
    """A silo's figures with "merged" for "received", as which the first adapter of a message travels."""
    head = RECEIVED + "/"
    return {
        f"{MERGED}/{key.removeprefix(head)}" if key.startswith(head) else key: value
        for key, value in metrics.items()
    }


def _said(error: Exception) -> str:
    """An error in one line."""
    return " ".join(str(error).split()) or type(error).__name__
