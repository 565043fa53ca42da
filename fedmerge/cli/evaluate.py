"""`fedmerge evaluate`: an adapter on disk, scored on a simulation's data beside the untouched base."""

from __future__ import annotations

import json
from collections.abc import Mapping, Sequence
from typing import TYPE_CHECKING, Annotated, Any

import typer

from fedmerge.cli import recipe, table
from fedmerge.cli.manner import Outcome, console
from fedmerge.cli.options import NO_SETS, Sets, Simulation
from fedmerge.errors import AdapterMismatch, ConfigError

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
    from fedmerge.silo.base import check_fingerprint

    trained_on = adapter.metadata.get("fingerprint", "")
    found = check_fingerprint(config.silo.base)
    if trained_on and trained_on != found:
        raise AdapterMismatch(
            f"{name}: trained on the base with fingerprint {trained_on[:12]}, "
            f"but base.model = {config.silo.base.model!r} has {found[:12]}"
        )


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


def check_labels(adapter: Adapter, labels: Sequence[str]) -> None:
    """Refuse a trained head of other labels: its outputs are told apart by their order alone.

    Raises:
        AdapterMismatch: the adapter has a head and was trained on other labels.
    """
    trained_on = labels_of(adapter)
    if has_head(adapter) and trained_on and trained_on != list(labels):
        raise AdapterMismatch(
            f"the adapter's head was trained on {len(trained_on)} labels ({trained_on[0]!r} first), "
            f"the simulation's silos agree on {len(labels)} ({labels[0] if labels else 'none'!r} first)"
        )


def has_head(adapter: Adapter) -> bool:
    """Whether a classification head travels in the adapter."""
    return any(name.startswith("head.") for name in adapter.tensors)


def labels_of(adapter: Adapter) -> list[str]:
    """The labels that an adapter says it was trained on."""
    text = adapter.metadata.get("labels", "[]")
    try:
        labels = json.loads(text)
    except ValueError:
        raise AdapterMismatch(f"the adapter's metadata name its labels as {text[:60]!r}: not JSON") from None
    return [str(label) for label in labels] if isinstance(labels, list) else []
