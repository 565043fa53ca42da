"""A finished run goes on: one more adapter is merged in, or a silo is taken out, without any training.

Only the last round is merged again, from its recorded deltas. Of a run of one round that is exact: a silo
taken out leaves what the merge would have been without it, to the bit. Earlier rounds of a longer run were
trained with the silo, and their influence stays: this is not unlearning.
"""

from __future__ import annotations

from collections.abc import Callable, Mapping
from dataclasses import dataclass, replace
from pathlib import Path
from typing import TYPE_CHECKING, Any

from fedmerge.adapters import Adapter
from fedmerge.adapters.foreign import delta_to, padded, started_from
from fedmerge.adapters.spaces import Factors, parse_space
from fedmerge.config import Config, Scalar, read_config
from fedmerge.errors import AdapterMismatch, ConfigError, nearest
from fedmerge.rules import task_arithmetic
from fedmerge.server.observer import Observer, Silent
from fedmerge.server.outliers import Clip, parse_guard
from fedmerge.server_app.scoring import MERGED, Scores
from fedmerge.study.admission import check_fingerprint, check_labels
from fedmerge.study.last_round import Last, last_round
from fedmerge.study.one_round import ALONE, BEFORE, Material, OneRound
from fedmerge.study.one_shot import check_weight, without_factors
from fedmerge.wire.fields import silo_name

if TYPE_CHECKING:
    from fedmerge.study.bench import Bench

NOT_UNLEARNING = (
    "only round {last} of {last} was merged again; the rounds before it were trained with {silo}, and what "
    "they learnt from it stays: this is not unlearning"
)
EXACT = "exact: the run had one round, and this is the merge that it would have made without {silo}"


@dataclass(frozen=True)
class Newcomer:
    """An adapter that joins a run.

    Args:
        name: that it is to have.
        adapter: trained on the run's base, from any start.
        weight: raw, among the run's numbers of examples (or 1 for each, where they weigh alike); None for
            the silo's number of examples where the simulation has a silo of that name, else the mean of the
            others'.
    """

    name: str
    adapter: Adapter
    weight: float | None = None


def add(
    path: Path, newcomer: Newcomer, output: Path, space: str = "", observer: Observer | None = None
) -> dict[str, Any]:
    """Merge one more adapter into a finished run; the run stays as it is.

    Args:
        path: of the run.
        newcomer: the adapter.
        output: the folder of the run that is written.
        space: where to compare instead of in the run's space.
        observer: told of progress.

    Returns:
        The content of result.json; `changed` has the scores before and after.

    Raises:
        CheckpointError: a run without recorded deltas, or with damaged ones.
        ConfigError: a name that is taken, or a weight that can't be used.
        AdapterMismatch: another base, other labels or tensors, or another start where the space compares
            factors.
    """
    last = last_round(path)
    name = silo_name(newcomer.name)
    if name in last.round.deltas:
        raise ConfigError(f"{path} has a silo {name!r} already; give the adapter another name (--name)")
    rank = max(_rank(last.round.received), _rank(newcomer.adapter))
    changes: dict[str, Scalar] = {}
    if newcomer.weight is not None:
        check_weight(name, newcomer.weight)
        changes["strategy.weighting"] = "examples"  # the numbers in the reports stand for them
    if space:
        changes["strategy.space"] = space
    config = _config(last, output, changes)
    notes = _add_notes(last, rank)
    if not _started(newcomer, last):
        _check_space(config, newcomer, last)
        config, left = without_factors(config)
        notes += left

    def joined(bench: Bench) -> Material:
        check_fingerprint(newcomer.adapter, bench.fingerprint, config.silo.base.model, name)
        check_labels(newcomer.adapter, bench.labels, name)
        received = padded(last.round.received, rank)
        deltas = {silo: padded(delta, rank) for silo, delta in last.round.deltas.items()}
        deltas[name] = delta_to(newcomer.adapter, received, name)
        weight = newcomer.weight or _usual_weight(name, config, last, bench)
        counts = _alike(last.counts, last.run.config) if newcomer.weight is not None else last.counts
        return Material(received, deltas, {**counts, name: weight}, last.state, last.round.statistics)

    notes = _add_notes(last, rank)
    return _again(
        last, config, joined, {"kind": "add", "silo": name, "exact": False, "notes": notes}, observer
    )


def remove(
    path: Path, silo: str, output: Path, negate: float | None = None, observer: Observer | None = None
) -> dict[str, Any]:
    """Merge a finished run's last round again without a silo, or with its delta subtracted.

    Args:
        path: of the run.
        silo: who leaves.
        output: the folder of the run that is written.
        negate: the scale of task arithmetic over all deltas, the silo's subtracted; None leaves it out.
        observer: told of progress.

    Returns:
        The content of result.json; `changed` has the scores before and after.

    Raises:
        CheckpointError: a run without recorded deltas, or with damaged ones.
        ConfigError: a silo that is not in the run, or the only one.
    """
    last = last_round(path)
    if silo not in last.round.deltas:
        raise ConfigError(
            f"{path}: no silo {silo!r} in round {last.round.number}; {nearest(silo, last.round.deltas)}"
        )
    if len(last.round.deltas) == 1:
        raise ConfigError(
            f"{path}: {silo!r} is the only silo of round {last.round.number}; nothing would be left"
        )
    changes: dict[str, Scalar] = {}
    if negate is not None:
        changes["strategy.rule"] = str(task_arithmetic(scale=negate, negate=(silo,)))
    config = _config(last, output, changes)
    material = last.material
    if negate is None:
        deltas = {name: delta for name, delta in material.deltas.items() if name != silo}
        material = replace(material, deltas=deltas, counts={name: material.counts[name] for name in deltas})
    clipped = isinstance(parse_guard(config.strategy.guard), Clip)  # by the length of all, who leaves too
    exact = last.round.number == 1 and negate is None and not clipped
    told = EXACT.format(silo=silo) if exact else ""
    if last.round.number > 1:
        told = NOT_UNLEARNING.format(last=last.round.number, silo=silo)
    about: dict[str, Any] = {"kind": "remove" if negate is None else "negate", "silo": silo, "exact": exact}
    about["notes"] = [told] if told else []
    return _again(last, config, lambda _: material, about, observer)


def _config(last: Last, output: Path, changes: Mapping[str, Scalar]) -> Config:
    """The run-config of the run that is written: the run's, of one round, without baselines of its own."""
    fixed: dict[str, Scalar] = {
        "run.rounds": 1,
        "run.record": True,
        "run.keep-rounds": 0,
        "run.baselines": "",
    }
    return read_config(last.run.config.flat | fixed | {"run.output": str(output.absolute())} | dict(changes))


def _started(newcomer: Newcomer, last: Last) -> bool:
    """Whether an adapter was trained from the one that the round's silos received."""
    received, lora = last.round.received, newcomer.adapter.lora
    same = lora is not None and received.lora is not None and lora.scaling == received.lora.scaling
    return same and started_from(newcomer.adapter, received)


def _check_space(config: Config, newcomer: Newcomer, last: Last) -> None:
    """Refuse to compare the factors of an adapter that started somewhere else.

    Raises:
        AdapterMismatch: the space is `factors()`.
    """
    if isinstance(parse_space(config.strategy.space), Factors):
        raise AdapterMismatch(
            f"{newcomer.name}: the adapter did not start from the one that round {last.round.number} "
            "received (another A, rank or scaling), so its factors can't be compared with the silos' in "
            f'{config.strategy.space}: add it with --space "product()"'
        )


def _usual_weight(name: str, config: Config, last: Last, bench: Bench) -> float:
    """A newcomer's weight where nobody gave one."""
    if name in bench.examples and config.strategy.weighting == "examples":
        return float(bench.examples[name])
    return sum(last.counts.values()) / len(last.counts)


def _alike(counts: Mapping[str, float], config: Config) -> dict[str, float]:
    """The raw weights of the silos so far: numbers of examples, or 1 each where the run weighs them alike."""
    return dict(counts) if config.strategy.weighting == "examples" else dict.fromkeys(counts, 1.0)


def _rank(adapter: Adapter) -> int:
    if adapter.lora is None:
        raise AdapterMismatch("the adapter has no LoRA settings, so its rank and scaling are unknown")
    return adapter.lora.rank


def _add_notes(last: Last, rank: int) -> list[str]:
    notes = []
    if last.round.number > 1:
        notes.append(
            f"merged into round {last.round.number}, the run's last; the silos never trained from the result"
        )
    own = _rank(last.round.received)
    return notes + ([f"the run's adapters were padded from rank {own} to {rank}"] if rank > own else [])


def _again(
    last: Last,
    config: Config,
    material: Callable[[Bench], Material],
    about: Mapping[str, Any],
    observer: Observer | None,
) -> dict[str, Any]:
    """Merge, score what is new beside what was, and write a run's folder.

    Args:
        last: the round that is merged again.
        config: of the run that is written.
        material: what is merged, once the bench is there.
        about: what result.json tells of the change.
        observer: told of progress.
    """
    from fedmerge.study.bench import Bench  # noqa: PLC0415 (it loads the base)

    before = last.before
    known = {
        name: row
        for name, row in last.run.result["candidates"].items()
        if name == "base" or name.startswith(ALONE)
    }
    with Bench(config) as bench:
        merged = material(bench)
        run = OneRound(config, bench, merged, observer or Silent())
        new = {
            f"{ALONE}{name}": merged.trained(name) for name in merged.deltas if f"{ALONE}{name}" not in known
        }
        return run.run(
            {BEFORE: before, **new}, known, lambda scores: {"changed": _change(last, about, scores)}
        )


def _change(last: Last, about: Mapping[str, Any], scores: Scores) -> dict[str, Any]:
    """What result.json tells of the change: what it was, and the scores before and after."""
    before, after = scores.row(BEFORE), scores.row(MERGED)
    origin = {"run": str(last.run.path), "round": last.round.number}
    split = "test" if after["test"] else "validation"
    return {**about, **origin, "split": split, "before": before, "after": after}
