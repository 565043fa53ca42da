"""The replies of one round: each checked as it comes in, then the odd ones, the devices and the quorum."""

from __future__ import annotations

import logging
import time
from collections.abc import Iterable, Mapping
from dataclasses import dataclass, field

from flwr.app import Message

from fedmerge.adapters import Adapter
from fedmerge.errors import ConfigError, RoundFailed, nearest
from fedmerge.server.absence import Absences
from fedmerge.server.asking import Asked
from fedmerge.server.directions import pairs_of
from fedmerge.server.guard import Admitted, Guard, Replies
from fedmerge.server.hearing import Again, Hearing, Sent, addressees
from fedmerge.server.observer import Observer
from fedmerge.server.outliers import OutlierPolicy
from fedmerge.server.report import RoundReport
from fedmerge.server.roster import check_devices
from fedmerge.wire.encodings import ENCODINGS

logger = logging.getLogger(__name__)

_MOST_NAMED = 5


@dataclass(frozen=True)
class Terms:
    """What is asked of every reply of a run.

    Args:
        encoding: how deltas travel.
        replies: "delta" or "weights".
        fingerprint: of the base; "" takes any.
        outliers: what becomes of deltas that are much too long.
        expects_gpu: whether silos of a simulation must not compute on the CPU.
        named: whether messages went to silos by name; else replies say their names.
        shared: whether this is a simulation, in which nothing is private.
        needs: the statistics that rule and shadows want of the silos.
        caps: by silo, the most training rows that it may count as.

    Raises:
        ConfigError: an unknown encoding or kind of reply.
    """

    encoding: str
    replies: Replies
    fingerprint: str
    outliers: OutlierPolicy
    expects_gpu: bool = False
    named: bool = True
    shared: bool = False
    needs: frozenset[str] = frozenset()
    caps: Mapping[str, int] = field(default_factory=dict)

    def __post_init__(self) -> None:
        if self.replies not in ("delta", "weights"):
            known = nearest(str(self.replies), ["delta", "weights"])
            raise ConfigError(f"replies is {self.replies!r}: {known}")
        if self.encoding not in ENCODINGS:
            raise ConfigError(f"encoding is {self.encoding!r}: {nearest(str(self.encoding), ENCODINGS)}")


@dataclass(frozen=True)
class Opened:
    """A round whose messages are out.

    Args:
        asked: whom it asks.
        sent: what went out.
        report: the round's report so far.
        since: `time.monotonic` of the sending.
        again: asks silos once more whose nodes went away; None where that can't be done.
        absences: who was missing so far.
    """

    asked: Asked
    sent: Sent
    report: RoundReport
    since: float
    again: Again | None = None
    absences: Absences = field(default_factory=Absences)


def gather(
    opened: Opened, received: Adapter, replies: Iterable[Message], terms: Terms, observer: Observer
) -> list[Admitted]:
    """Check the replies as they come in, and note in the round's report what became of each.

    The round closes when all have answered, at its deadline otherwise. A silo whose node went away is asked
    again where the quorum can't be had without it. As soon as so many replies are refused that the quorum is
    out of reach, the round ends: the others would train for nothing.

    Returns:
        The admitted replies, sorted by silo name.

    Raises:
        RoundFailed: there are fewer than the quorum wants, or silos compute on the CPU beside an idle GPU.
    """
    guard = Guard(
        opened.report.round,
        received,
        asked=addressees(opened.sent, named=terms.named),
        encoding=terms.encoding,
        replies=terms.replies,
        fingerprint=terms.fingerprint,
        reveal=terms.shared or not terms.named,
        needs=terms.needs,
    )
    hearing = Hearing(guard, observer, opened.asked)
    hearing.hear(opened.sent, replies)
    if opened.again is not None:
        hearing.hear_again(opened.again, terms.named)
    _cap(terms.caps, guard, opened.report)
    _apply(terms.outliers, guard, opened.report)
    _note(opened, hearing)
    if terms.shared:
        check_devices({reply.silo: reply.device for reply in guard.admitted}, expects_gpu=terms.expects_gpu)
    if len(guard.admitted) < opened.asked.need:
        raise RoundFailed(_too_few(opened, hearing))
    return guard.admitted


def _cap(caps: Mapping[str, int], guard: Guard, report: RoundReport) -> None:
    """Have silos count as no more rows than the roster lets them."""
    for reply in guard.admitted:
        most = caps.get(reply.silo, 0)
        if 0 < most < reply.examples:
            guard.cap(reply.silo, most)
            report.flag(reply.silo, f"counts as {most} of {reply.examples:g} rows")
            logger.warning(
                "round %d: %s says %g rows, and counts as %d", guard.round, reply.silo, reply.examples, most
            )


def _apply(policy: OutlierPolicy, guard: Guard, report: RoundReport) -> None:
    """Refuse or shorten the deltas that the policy names."""
    norms = {reply.silo: reply.norm for reply in guard.admitted}
    pairs = pairs_of({reply.silo: reply.delta.tensors for reply in guard.admitted}, norms)
    for silo, verdict in policy.judge(norms, pairs).items():
        if verdict.factor:
            guard.shorten(silo, verdict.factor)
            report.flag(silo, verdict.reason)
        else:
            guard.drop(silo, verdict.reason, "reply/outlier")
        logger.warning("round %d: %s is an outlier (%s): %s", guard.round, silo, policy, verdict.reason)


def _note(opened: Opened, hearing: Hearing) -> None:
    """Put what came, and what did not, into the round's report."""
    report, guard = opened.report, hearing.guard
    report.refuse(guard.refused)
    missing = hearing.missing()
    report.missing = sorted(missing)
    present = set(opened.asked.silos) - set(missing) - set(hearing.dismissed())
    report.missing_since = opened.absences.note(report.round, missing, present)
    report.bytes_up = guard.bytes_up
    report.seconds["train"] = time.monotonic() - opened.since


def _too_few(opened: Opened, hearing: Hearing) -> str:
    """Why the round can't be closed, in one sentence."""
    report, asked = opened.report, opened.asked
    refused = [f"{refusal.silo} ({refusal.reason})" for refusal in report.refused]
    missing = [absence.sentence(silo) for silo, absence in report.missing_since.items()]
    parts = [
        f"round {report.round}: {len(hearing.guard.admitted)} of {len(asked.silos)} silos gave a usable "
        f"reply, the quorum wants {asked.need}"
    ]
    groups = (("refused", refused), ("missing", missing), ("not waited for", hearing.dismissed()))
    parts += [f"{what}: {_some(names)}" for what, names in groups if names]
    return "; ".join(parts) + f". The adapter of round {report.round - 1} is intact"


def _some(names: list[str]) -> str:
    more = f" and {len(names) - _MOST_NAMED} more" if len(names) > _MOST_NAMED else ""
    return ", ".join(names[:_MOST_NAMED]) + more
