"""Whether a watched run is well, and if not, why."""

from __future__ import annotations

import ssl
import time
import urllib.error
import urllib.request
from collections.abc import Callable
from dataclasses import dataclass
from pathlib import Path
from threading import Lock
from typing import Any

from fedmerge.deployment.watching.view import State, View

MARGIN_SECONDS = 120.0
"""What a round may take beside waiting for nodes and its deadline: merging, writing, scoring, starting."""

_PROBE_SECONDS = 3.0
_KEPT_SECONDS = 2.0  # many requests ask the SuperLink once


@dataclass(frozen=True)
class Health:
    """How a run is.

    Args:
        reasons: what is wrong, a sentence each; empty where nothing is.
        facts: what it was judged from.
    """

    reasons: tuple[str, ...]
    facts: dict[str, Any]

    @property
    def status(self) -> int:
        """Of HTTP: 200, or 503 where something is wrong."""
        return 503 if self.reasons else 200

    def payload(self) -> dict[str, Any]:
        """As JSON is made of it."""
        return {"healthy": not self.reasons, "reasons": list(self.reasons)} | self.facts


def judge(view: View, limit_seconds: float, superlink: str, now: float) -> Health:
    """How a run is, by what its watcher sees.

    Args:
        view: the watcher's.
        limit_seconds: within which a round is to be closed.
        superlink: why the SuperLink does not answer; "" where it does.
        now: unix time.
    """
    figures = view.figures
    quiet = now - max(view.since, figures.started, figures.closed_at)
    reasons = []
    if view.state is State.FAILED:
        reasons.append(view.sentence)
    if superlink:
        reasons.append(superlink)
    if view.state not in (State.FAILED, State.COMPLETED) and quiet > limit_seconds:
        reasons.append(f"no round was closed for {quiet:.0f} seconds; {limit_seconds:.0f} are allowed")
    facts = {
        "state": str(view.state),
        "sentence": view.sentence,
        "run": view.run,
        "round": figures.round,
        "rounds": figures.planned,
        "rounds_closed": figures.closed,
        "resubmissions": view.resubmissions,
        "seconds_since_round_closed": round(now - figures.closed_at, 1) if figures.closed_at else None,
        "limit_seconds": limit_seconds,
    }
    return Health(tuple(reasons), facts)


class Probe:
    """Asks the SuperLink's own /health, at most every two seconds.

    Args:
        url: of it.
        certificate: of the CA; None where there is no TLS.
        clock: monotonic seconds.
    """

    def __init__(
        self, url: str, certificate: Path | None, clock: Callable[[], float] = time.monotonic
    ) -> None:
        """Read the certificate."""
        handlers: list[urllib.request.BaseHandler] = [urllib.request.ProxyHandler({})]
        if certificate is not None:
            context = ssl.create_default_context(cafile=certificate)
            handlers.append(urllib.request.HTTPSHandler(context=context))
        self._url, self._clock = url, clock
        self._opener = urllib.request.build_opener(*handlers)
        self._lock = Lock()
        self._asked, self._said = -_KEPT_SECONDS, ""

    def __call__(self) -> str:
        """Why it does not answer; "" where it does."""
        with self._lock:
            if self._clock() - self._asked >= _KEPT_SECONDS:
                self._said = self._ask()
                self._asked = self._clock()
            return self._said

    def _ask(self) -> str:
        try:
            with self._opener.open(self._url, timeout=_PROBE_SECONDS):
                return ""
        except urllib.error.HTTPError as error:
            error.close()
            return f"the SuperLink's {self._url} answers {error.code}"
        except (urllib.error.URLError, OSError) as error:
            why = getattr(error, "reason", error)
            return f"the SuperLink's {self._url} does not answer: {why}"
