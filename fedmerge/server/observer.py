"""Who watches a run: progress bars, the run's folder, trackers. Observers see; they never change a run."""

from __future__ import annotations

from collections.abc import Iterable, Mapping, Sequence
from typing import Any, Protocol


class Observer(Protocol):
    """What is told while a run goes on, in this order.

    Values are plain Python (numbers, strings, lists, dicts), so that each event can be written as JSON.
    """

    def run_started(self, plan: Mapping[str, Any]) -> None:
        """Once: rounds, rule, space, silos, seed, size of the adapter."""

    def phase(self, text: str) -> None:
        """What goes on now, in a few words: "waiting for nodes", "merging"."""

    def round_started(self, round: int, silos: Sequence[str]) -> None:
        """The broadcast goes out to these silos."""

    def reply(self, round: int, silo: str, outcome: str, metrics: Mapping[str, float]) -> None:
        """One reply came in; `outcome` is "admitted" or the sentence of the refusal."""

    def round_closed(self, report: Mapping[str, Any]) -> None:
        """The round's report: scores, bytes, seconds, refused, missing."""

    def finished(self, result: Mapping[str, Any]) -> None:
        """Once, at the end: what stands in result.json."""


class Silent:
    """Watches nothing: the default, and a base for observers that care for a few events only."""

    def run_started(self, plan: Mapping[str, Any]) -> None:
        """Nothing."""

    def phase(self, text: str) -> None:
        """Nothing."""

    def round_started(self, round: int, silos: Sequence[str]) -> None:
        """Nothing."""

    def reply(self, round: int, silo: str, outcome: str, metrics: Mapping[str, float]) -> None:
        """Nothing."""

    def round_closed(self, report: Mapping[str, Any]) -> None:
        """Nothing."""

    def finished(self, result: Mapping[str, Any]) -> None:
        """Nothing."""


class Several:
    """Tells each event to several observers, in their order."""

    def __init__(self, observers: Iterable[Observer]) -> None:
        """Watch with each of `observers`."""
        self.observers = tuple(observers)

    def run_started(self, plan: Mapping[str, Any]) -> None:
        """Pass on."""
        for observer in self.observers:
            observer.run_started(plan)

    def phase(self, text: str) -> None:
        """Pass on."""
        for observer in self.observers:
            observer.phase(text)

    def round_started(self, round: int, silos: Sequence[str]) -> None:
        """Pass on."""
        for observer in self.observers:
            observer.round_started(round, silos)

    def reply(self, round: int, silo: str, outcome: str, metrics: Mapping[str, float]) -> None:
        """Pass on."""
        for observer in self.observers:
            observer.reply(round, silo, outcome, metrics)

    def round_closed(self, report: Mapping[str, Any]) -> None:
        """Pass on."""
        for observer in self.observers:
            observer.round_closed(report)

    def finished(self, result: Mapping[str, Any]) -> None:
        """Pass on."""
        for observer in self.observers:
            observer.finished(result)
