"""`fedmerge evaluate`: an adapter on disk, scored on a simulation's data beside the untouched base."""

from __future__ import annotations

from collections.abc import Mapping
from typing import TYPE_CHECKING, Annotated, Any

import typer

from fedmerge.cli import recipe, table
from fedmerge.cli.manner import Outcome, console
from fedmerge.cli.options import NO_SETS, Sets, Simulation
from fedmerge.errors import ConfigError
from fedmerge.study.admission import check_fingerprint, check_labels

if TYPE_CHECKING:
    from fedmerge.adapters import Adapter
    from fedmerge.config import Config


def evaluate(
    adapter: Annotated[str, typer.Argument(help="An adapter folder, or a Hub id.", metavar="ADAPTER")],
    simulation: Simulation = "",
    sets: Sets = NO_SETS,
) -> Outcome:
    """Score an adapter on a simulation's data, silo by silo, with the base beside it."""
    config = recipe.read(simulation, "", sets)
    from fedmerge.wire.files import load_adapter

    given = load_adapter(adapter)
    check_base(given, config, adapter)
    result = result_of(_score(config, given)) | {"adapter": adapter}
    return Outcome(result, ["", *table.shown(table.score_table(result), console().width)])


def check_base(adapter: Adapter, config: Config, name: str) -> None:
    """Refuse an adapter of another base: shapes may fit by chance, and the scores would mean nothing.

    Raises:
        AdapterMismatch: the adapter's fingerprint is not that of the simulation's base.
    """
    from fedmerge.silo.base import check_fingerprint as found_here

    check_fingerprint(adapter, found_here(config.silo.base), config.silo.base.model, name)


def result_of(metrics: Mapping[str, Mapping[str, float]]) -> dict[str, Any]:
    """What the silos measured, in the form of a run's `result.json`.

    Args:
        metrics: by silo, keyed "<candidate>/<split>/<name>" with the candidates "base" and "adapter".

    Raises:
        ConfigError: no silo has validation or test rows.
    """
    from fedmerge.server_app.scoring import Scores

    scores = Scores(metrics)
    summary = scores.summary("adapter", "test") or scores.summary("adapter", "validation")
    if summary is None:
        raise ConfigError("no silo has rows to score on; set data.validation or data.test above 0")
    return {
        "metric": summary.metric,
        "higher_is_better": summary.higher_is_better,
        "silos": sorted(metrics),
        "candidates": {name: scores.row(name) for name in ("base", "adapter")},
    }


def _score(config: Config, given: Adapter) -> dict[str, dict[str, float]]:
    """What each silo measures of base and adapter, by silo."""
    from fedmerge.cli.progress import working
    from fedmerge.silo.data import agreed_labels, load_silos
    from fedmerge.silo.lora import initial_adapter
    from fedmerge.silo.order import Order
    from fedmerge.silo.worker import Worker

    silos = load_silos(config.silo.data)
    worker = Worker(config.silo, silos)
    labels = agreed_labels(config.silo.data, worker.cards())
    check_labels(given, labels)
    # The adapter first: where it does not fit, that is known at once.
    candidates = {"adapter": given, "base": initial_adapter(config.silo, labels)}
    metrics = {}
    with working("scoring", len(silos)) as watch:
        for silo in silos:
            order = Order(silo, splits=("validation", "test"), labels=tuple(labels))
            found = worker.evaluate(candidates, order)
            metrics[silo] = {name: value for name, value in found.items() if isinstance(value, float)}
            watch.advance(silo)
    return metrics
