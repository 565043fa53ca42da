"""One-shot federation: adapters that were handed over by any means, merged once and scored like a run."""

from __future__ import annotations

import hashlib
import json
import math
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import TYPE_CHECKING, Any

from fedmerge.adapters import Adapter
from fedmerge.adapters.foreign import delta_to, nothing_like, padded, started_from
from fedmerge.adapters.identity import content_names
from fedmerge.adapters.spaces import Factors, parse_space
from fedmerge.config import Config, Scalar, read_config
from fedmerge.errors import AdapterMismatch, ConfigError
from fedmerge.server.observer import Observer, Silent
from fedmerge.server.plan import parse_shadows
from fedmerge.server_app.scoring import BASE
from fedmerge.study.admission import check_fingerprint, check_labels
from fedmerge.study.one_round import ALONE, Material, OneRound
from fedmerge.wire.fields import silo_name

if TYPE_CHECKING:
    from fedmerge.study.bench import Bench


@dataclass(frozen=True)
class Handed:
    """Adapters as they were handed over.

    Args:
        adapters: by name, at least one.
        weights: raw, by the same names; None where nobody gave any.

    Raises:
        ConfigError: no adapter, or one without LoRA settings.
        WireError: a name that no silo may have.
    """

    adapters: Mapping[str, Adapter]
    weights: Mapping[str, float] | None = None

    def __post_init__(self) -> None:
        """Check names and adapters."""
        if not self.adapters:
            raise ConfigError("no adapter was given, expected at least one")
        for name, adapter in self.adapters.items():
            silo_name(name)
            if adapter.lora is None:
                raise ConfigError(f"{name}: the adapter has no LoRA settings, so its scaling is unknown")
        for name, weight in (self.weights or {}).items():
            check_weight(name, weight)


def check_weight(name: str, weight: float) -> None:
    """Refuse a weight that is no finite number above 0.

    Raises:
        ConfigError: with the name and the weight.
    """
    if not (math.isfinite(weight) and weight > 0):
        raise ConfigError(f"{name}: its weight is {weight:g}, expected a finite number above 0")


def one_shot(config: Config, handed: Handed, observer: Observer | None = None) -> dict[str, Any]:
    """Merge adapters in one round, score them on all silos of a simulation, and write a run's folder.

    Adapters that all started from the adapter that the simulation's round 1 broadcasts are told as deltas to
    it, as in a run. Otherwise what they have in common is the zero adapter: each is its own delta.

    Args:
        config: of the simulation, with `run.output` where the run is to be written.
        handed: the adapters.
        observer: told of progress.

    Returns:
        The content of result.json, with `one_shot` beside what a run has.

    Raises:
        AdapterMismatch: adapters of another base or other labels, that do not fit the base, or that did not
            start from one adapter where the space asks for it.
        ConfigError: weights or settings that can't be used.
    """
    from fedmerge.study.bench import Bench  # noqa: PLC0415 (it loads the base)

    rank, notes = _common_rank(config, list(handed.adapters.values()))
    config = _one_round(config, handed)
    with Bench(config) as bench:
        for name, adapter in handed.adapters.items():
            check_fingerprint(adapter, bench.fingerprint, config.silo.base.model, name)
            check_labels(adapter, bench.labels, name)
        started = _started(bench.initial, handed.adapters)
        if not started:
            _check_space(config)
            config, left = without_factors(config)
            notes += left
        received = bench.initial if started else nothing_like(padded(bench.initial, rank))
        counts, told = _counts(config, handed, bench)
        deltas = {name: delta_to(adapter, received, name) for name, adapter in handed.adapters.items()}
        material = Material(received, deltas, counts)
        scored = {BASE: bench.initial} | {f"{ALONE}{name}": material.trained(name) for name in sorted(deltas)}
        about = {
            "names": sorted(deltas),
            "without_rows": sorted(set(deltas) - set(bench.silos)),
            "received": "initial" if started else "zero",
            "counts": counts,
            "notes": [*notes, *told],
        }
        run = OneRound(config, bench, material, observer or Silent())
        return run.run(scored, {}, lambda _: {"one_shot": about})


def _common_rank(config: Config, adapters: Sequence[Adapter]) -> tuple[int, list[str]]:
    """The rank of the widest adapter, or `lora.rank` where that is more, and what a person should know."""
    ranks = sorted({config.silo.lora.rank} | {adapter.lora.rank for adapter in adapters if adapter.lora})
    known = ", ".join(map(str, ranks))
    return ranks[-1], [f"ranks {known}: all were padded to {ranks[-1]}"] if len(ranks) > 1 else []


def _one_round(config: Config, handed: Handed) -> Config:
    """The run-config of the run that is written."""
    changes: dict[str, Scalar] = {"run.rounds": 1, "run.record": True, "run.keep-rounds": 0}
    if handed.weights is not None:
        changes["strategy.weighting"] = "examples"  # the numbers given stand for them
    if not config.run.output:
        changes["run.output"] = str(_default_folder(config, handed))
    return read_config(config.flat | changes)


def _default_folder(config: Config, handed: Handed) -> Path:
    """A name that is another for other adapters, weights or settings."""
    contents = dict(zip(handed.adapters, content_names(list(handed.adapters.values())), strict=True))
    told = json.dumps([config.digest, contents, dict(handed.weights or {})], sort_keys=True)
    rule = config.strategy.rule.partition("(")[0]
    digest = hashlib.sha256(told.encode()).hexdigest()[:8]
    return Path("runs", f"{config.run.name}-one-shot-{rule}-{digest}").absolute()


def _started(initial: Adapter, adapters: Mapping[str, Adapter]) -> bool:
    """Whether all were trained from the adapter that round 1 of the simulation broadcasts."""
    return all(
        adapter.lora is not None
        and initial.lora is not None
        and adapter.lora.rank == initial.lora.rank
        and adapter.lora.scaling == initial.lora.scaling
        and started_from(adapter, initial)
        for adapter in adapters.values()
    )


def _check_space(config: Config) -> None:
    """Refuse to compare factors that have nothing in common.

    Raises:
        AdapterMismatch: the space is `factors()`.
    """
    if isinstance(parse_space(config.strategy.space), Factors):
        raise AdapterMismatch(
            "the adapters were trained from other starts (another A, or another rank or scaling), so their "
            f'factors can\'t be compared in {config.strategy.space}; set strategy.space to "product()"'
        )


def without_factors(config: Config) -> tuple[Config, list[str]]:
    """The run-config without shadows that compare factors."""
    shadows = parse_shadows(config.strategy.shadows)
    kept = [shadow for shadow in shadows if not isinstance(shadow.space, Factors)]
    if len(kept) == len(shadows):
        return config, []
    changed = read_config(config.flat | {"strategy.shadows": "; ".join(shadow.name for shadow in kept)})
    return changed, ["shadows in factors() were left out: these adapters have no factors in common"]


def _counts(config: Config, handed: Handed, bench: Bench) -> tuple[dict[str, float], list[str]]:
    """What each adapter counts, and why."""
    names = sorted(handed.adapters)
    if handed.weights is not None:
        return {name: float(handed.weights[name]) for name in names}, []
    if config.strategy.weighting == "uniform":
        return {name: float(bench.examples.get(name, 1)) for name in names}, []
    unknown = [name for name in names if name not in bench.examples]
    if not unknown:
        return {name: float(bench.examples[name]) for name in names}, [
            "weights: each silo's number of examples"
        ]
    note = (
        f'all weigh alike: strategy.weighting is "examples", and no silo of the simulation is called '
        f"{', '.join(map(repr, unknown[:3]))}"
    )
    return dict.fromkeys(names, 1.0), [note]
