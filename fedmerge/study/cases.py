"""What can be inspected, found on disk: a run's recorded round, or adapters, with or without rows."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path

from fedmerge.adapters import Adapter
from fedmerge.checkpoints.whole_weights import less_base, whole_weights
from fedmerge.config import Config
from fedmerge.errors import AdapterMismatch
from fedmerge.silo.base import BUILTIN, base_folder
from fedmerge.silo.fingerprint import fingerprint_of
from fedmerge.study import subject
from fedmerge.study.geometry_file import FILE
from fedmerge.study.recorded import open_run
from fedmerge.study.subject import Subject
from fedmerge.wire.checkpoint import WANTED, open_checkpoint
from fedmerge.wire.files import load_adapter
from fedmerge.wire.folders import find_folder

MEMO = "memo"
"""In a run's folder: what silos have answered, so that a second inspection computes only what is new."""


@dataclass(frozen=True, eq=False)
class Case:
    """What is to be inspected, and with what.

    Args:
        subject: the deltas.
        config: of the simulation whose rows are scored; None: nothing is scored.
        base: the folder of the base's weights; None: not at hand.
        output: file to write; None: none.
        title: a line that says what it is.
        memo: a folder that keeps what silos answer; None keeps nothing.
    """

    subject: Subject
    config: Config | None
    base: Path | None
    output: Path | None
    title: str
    memo: Path | None = None


def of_run(path: str, round: int, output: Path | None, *, scored: bool) -> Case:
    """A round of a run.

    Args:
        path: the run's folder.
        round: its number; 0: the last one whose deltas were recorded.
        output: file to write; None: geometry.json in the run's folder.
        scored: whether adapters are to be scored on the run's own rows.

    Raises:
        ConfigError: a base that is not to be had.
        CheckpointError: no run, no deltas recorded, no such round, or files that are damaged.
    """
    run = open_run(path)
    recorded = run.round(round or None)
    made = subject.of_round(run, recorded)
    title = f"{run.path}, round {recorded.number}: {len(made.names)} silos, {made.how}"
    config, folder = run.config if scored else None, base_folder(run.config.silo.base)
    return Case(made, config, folder, output or run.path / FILE, title, memo=run.path / MEMO)


def of_adapters(models: Sequence[str], config: Config | None, base: str, output: Path | None) -> Case:
    """Adapters on disk.

    Args:
        models: folders or Hub ids.
        config: of the simulation whose rows are scored.
        base: their base, where no simulation names it; "" if it is not at hand.
        output: file to write.

    Raises:
        ConfigError: no such adapter or base.
        AdapterMismatch: adapters of different bases or of another one than is given, or of another kind.
    """
    adapters = dict(zip(called(models), map(load_adapter, models), strict=True))
    folder = base_folder(config.silo.base) if config else folder_of(base) if base else None
    fingerprint = check_bases(adapters, fingerprint_of(folder) if folder else "")
    title = f"{len(adapters)} {'adapter' if len(adapters) == 1 else 'adapters'}: {', '.join(adapters)}"
    made = subject.of_adapters(updates_alone(adapters, folder), fingerprint=fingerprint)
    return Case(made, config, folder, output, title)


def folder_of(base: str) -> Path:
    """The folder of a base that is named alone: "builtin", a folder with weights, or a Hub id.

    Raises:
        ConfigError: it is none of these, or the Hub does not give it.
    """
    return BUILTIN if base == "builtin" else find_folder(base, "base", WANTED)


def called(models: Sequence[str]) -> list[str]:
    """A name for each: its folder's, or all that was given where two folders have one name.

    Example:
        >>> called(["out/north", "out/south"]), called(["a/adapter", "b/adapter"])
        (['north', 'south'], ['a/adapter', 'b/adapter'])
    """
    short = [Path(model).name or model for model in models]
    return short if len(set(short)) == len(short) else list(models)


def check_bases(adapters: Mapping[str, Adapter], found: str) -> str:
    """Refuse adapters that say that they were trained from different bases, or from another one than `found`.

    Args:
        adapters: by name.
        found: fingerprint of the base at hand; "" if there is none.

    Returns:
        The fingerprint that all of them carry; "" where one of them carries none.

    Raises:
        AdapterMismatch: names them.
    """
    for key in ("fingerprint", "base_model"):
        told = {name: adapter.metadata.get(key, "") for name, adapter in adapters.items()}
        known = {name: value for name, value in told.items() if value}
        if len(set(known.values())) > 1 and (key == "fingerprint" or not found):
            listed = ", ".join(f"{name} on {value[:60]!r}" for name, value in known.items())
            raise AdapterMismatch(f"the adapters were trained on different bases: {listed}")
    told = {name: adapter.metadata.get("fingerprint", "") for name, adapter in adapters.items()}
    for name, value in told.items():
        if found and value and value != found:
            raise AdapterMismatch(
                f"{name} was trained on the base with fingerprint {value[:12]}, "
                f"the base given has {found[:12]}"
            )
    return next(iter(told.values())) if all(told.values()) else ""


def updates_alone(adapters: Mapping[str, Adapter], base: Path | None) -> dict[str, Adapter]:
    """Adapters whose whole weights (PEFT's modules_to_save) are differences to the base's.

    Raises:
        AdapterMismatch: there are some, and no base is given.
    """
    names = sorted({name for adapter in adapters.values() for name in whole_weights(adapter)})
    if not names:
        return dict(adapters)
    if base is None:
        raise AdapterMismatch(
            f"{names[0]!r} is a whole weight and no update; only its difference to the base can be compared: "
            "give --base or --simulation"
        )
    deltas = less_base(list(adapters.values()), names, open_checkpoint(base, fetch=False))
    return dict(zip(adapters, deltas, strict=True))
