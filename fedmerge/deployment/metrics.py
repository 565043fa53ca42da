"""A watched run for Prometheus."""

from __future__ import annotations

import time
from collections.abc import Callable, Iterator, Mapping

from prometheus_client import CollectorRegistry
from prometheus_client.core import CounterMetricFamily, GaugeMetricFamily, InfoMetricFamily, Metric
from prometheus_client.registry import Collector

from fedmerge import __version__
from fedmerge.deployment.figures import PHASES, Figures
from fedmerge.deployment.watching.view import State, View
from fedmerge.server.refusals import KINDS


def registry(look: Callable[[], View], superlink: Callable[[], str]) -> CollectorRegistry:
    """A registry of its own, whose values are read when it is scraped.

    Args:
        look: the watcher's view as it is now.
        superlink: why the SuperLink does not answer; "" where it does.
    """
    made = CollectorRegistry()
    made.register(_Watch(look, superlink))
    return made


class _Watch(Collector):
    """Every metric of a watch; the names are documented in docs/deployment.md."""

    def __init__(self, look: Callable[[], View], superlink: Callable[[], str]) -> None:
        self._look, self._superlink = look, superlink

    def describe(self) -> Iterator[Metric]:
        """Nothing beforehand: nobody else has names in this registry."""
        return iter(())

    def collect(self) -> Iterator[Metric]:
        view = self._look()
        yield InfoMetricFamily("fedmerge_build", "The fedmerge that watches.", {"version": __version__})
        yield _gauge("superlink_up", "1 where the SuperLink's /health answers.", float(not self._superlink()))
        yield _states(view.state)
        resubmissions = "Attempts after the first: a lost run was submitted again."
        yield _counter("resubmissions", resubmissions, {(): float(view.resubmissions)})
        yield from _rounds(view.figures)
        yield from _traffic(view.figures)


def _rounds(figures: Figures) -> Iterator[Metric]:
    yield _gauge("round", "The round that was begun last.", figures.round)
    yield _gauge("rounds_planned", "Rounds that the run is to have.", figures.planned)
    yield _counter("rounds_closed", "Rounds that were closed.", {(): figures.closed})
    yield _gauge("silos_asked", "Silos that the last begun round asks.", figures.asked)
    if figures.last:
        yield _gauge("silos_admitted", "Replies admitted in the last reported round.", figures.last.admitted)
        yield _gauge(
            "silos_missing", "Silos without an answer in the last reported round.", figures.last.missing
        )
    if figures.closed_at:
        age = max(0.0, time.time() - figures.closed_at)
        yield _gauge("round_closed_age_seconds", "Seconds since the last round was closed.", age)
    if figures.metric:
        family = GaugeMetricFamily(
            "fedmerge_merged_score", "Newest score of a merged adapter, mean over silos.", labels=["metric"]
        )
        family.add_metric([figures.metric], figures.score)
        yield family


def _traffic(figures: Figures) -> Iterator[Metric]:
    refused = dict.fromkeys(KINDS, 0.0) | figures.total(lambda each: each.refused)
    yield _counter("refusals", "Replies refused, by kind of reason.", _labelled(refused), "reason")
    sent = figures.total(lambda each: {"up": each.bytes_up, "down": each.bytes_down})
    traffic = {"up": 0.0, "down": 0.0} | sent
    yield _counter("traffic_bytes", "Content of replies and instructions.", _labelled(traffic), "direction")
    spent = dict.fromkeys(PHASES, 0.0) | figures.total(lambda each: each.seconds)
    yield _counter("phase_seconds", "Seconds of rounds, by phase.", _labelled(spent), "phase")


def _states(state: State) -> Metric:
    family = GaugeMetricFamily("fedmerge_run_state", "1 for what the run is doing.", labels=["state"])
    for each in State:
        family.add_metric([str(each)], float(each is state))
    return family


def _labelled(values: Mapping[str, float]) -> dict[tuple[str, ...], float]:
    return {(label,): value for label, value in values.items()}


def _gauge(name: str, text: str, value: float) -> Metric:
    return GaugeMetricFamily(f"fedmerge_{name}", text, value)


def _counter(name: str, text: str, values: Mapping[tuple[str, ...], float], *labels: str) -> Metric:
    family = CounterMetricFamily(f"fedmerge_{name}", text, labels=labels)
    for names, value in values.items():
        family.add_metric(names, value)
    return family
