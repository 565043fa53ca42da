"""A finished run whose deltas were kept: read back, and held against the hashes it was written with."""

from __future__ import annotations

import json
from collections.abc import Mapping
from dataclasses import dataclass, replace
from functools import cached_property
from pathlib import Path
from typing import Any

from torch import Tensor

from fedmerge.adapters import Adapter, Lora
from fedmerge.config import Config, read_config, read_toml
from fedmerge.errors import CheckpointError
from fedmerge.server import storage


@dataclass(frozen=True)
class RecordedRound:
    """What a round merged.

    Args:
        number: from 1.
        received: the adapter that the silos started from.
        deltas: trained minus received, by silo, sorted.
        weights: what each silo counted in the merge, by silo.
        statistics: what silos measured besides, by silo, by name ("fisher", "gram").
    """

    number: int
    received: Adapter
    deltas: dict[str, Adapter]
    weights: dict[str, float]
    statistics: dict[str, dict[str, dict[str, Tensor]]]


@dataclass(frozen=True)
class RecordedRun:
    """A run's folder.

    Args:
        path: of the folder.
        config: of the run.
        rounds: numbers of the rounds whose deltas were kept, ascending; at least one.
    """

    path: Path
    config: Config
    rounds: tuple[int, ...]

    @cached_property
    def result(self) -> dict[str, Any]:
        """The content of result.json.

        Raises:
            CheckpointError: the run has none, or it can't be read.
        """
        return read_object(self.path / "result.json")

    def round(self, number: int | None = None) -> RecordedRound:
        """A round's deltas, verified; None takes the last one.

        Raises:
            CheckpointError: the round was not recorded, or a file is missing or damaged (its name is told).
        """
        number = self.rounds[-1] if number is None else number
        if number not in self.rounds:
            known = ", ".join(map(str, self.rounds))
            raise CheckpointError(f"{self.path}: round {number} has no deltas; recorded rounds: {known}")
        folder = self._folder(number)
        state = self._state(number)
        lora = Lora(self.config.silo.lora.rank, self.config.silo.lora.alpha, self.config.silo.lora.rslora)
        before, hashes = self._state(number - 1), state["sha256"]
        received = _read(self._folder(number - 1), "broadcast.safetensors", before["sha256"])[0]
        deltas: dict[str, Adapter] = {}
        statistics: dict[str, dict[str, dict[str, Tensor]]] = {}
        for name in sorted(hashes):
            place, _, file = name.partition("/")
            if place in ("deltas", "statistics"):
                tensors, silo = _read(folder, name, hashes)
                if place == "deltas":
                    deltas[silo] = Adapter(tensors, lora)
                else:
                    statistics.setdefault(silo, {})[file.split(".")[-2]] = tensors
        lora = _rank_of(received, lora)
        return RecordedRound(
            number,
            Adapter(received, lora),
            {silo: replace(deltas[silo], lora=lora) for silo in sorted(deltas)},
            {silo: float(state["silos"][silo]) for silo in sorted(deltas)},
            statistics,
        )

    def made(self, number: int) -> Adapter:
        """What a round made of its deltas: the adapter that the next one would receive.

        Raises:
            CheckpointError: the file is missing or damaged.
        """
        hashes = self._state(number)["sha256"]
        tensors = _read(self._folder(number), "broadcast.safetensors", hashes)[0]
        lora = Lora(self.config.silo.lora.rank, self.config.silo.lora.alpha, self.config.silo.lora.rslora)
        return Adapter(tensors, _rank_of(tensors, lora))

    def _folder(self, number: int) -> Path:
        return self.path / "rounds" / f"{number:04d}"

    def _state(self, number: int) -> dict[str, Any]:
        state = read_object(self._folder(number) / "state.json")
        if not isinstance(state.get("sha256"), Mapping):
            raise CheckpointError(f"{self._folder(number) / 'state.json'} lists no hashes")
        return state


def open_run(path: str | Path) -> RecordedRun:
    """Open the folder of a run whose deltas were kept.

    Raises:
        CheckpointError: no such folder, no run's folder, or a run without recorded deltas.
        ConfigError: its config.toml can't be used.
    """
    folder = Path(path).expanduser().absolute()
    if not folder.is_dir():
        raise CheckpointError(f"{folder}: there is no such folder; expected a run's folder")
    if not (folder / "config.toml").is_file():
        raise CheckpointError(f"{folder} has no config.toml, so it is no run's folder")
    config = read_config(read_toml(folder / "config.toml"))
    rounds = tuple(
        sorted(
            int(state.parent.name)
            for state in folder.glob("rounds/[0-9][0-9][0-9][0-9]/state.json")
            if any((state.parent / "deltas").glob("*.safetensors"))
        )
    )
    if not rounds:
        raise CheckpointError(
            f"{folder}: the run kept no deltas, so there is nothing to merge again; run it with "
            "run.record = true (--set run.record=true)"
        )
    return RecordedRun(folder, config, rounds)


def read_object(path: Path) -> dict[str, Any]:
    """A JSON object from a file of a run.

    Raises:
        CheckpointError: it is not there, can't be read, or holds something else.
    """
    try:
        value = json.loads(path.read_text(encoding="utf-8"))
    except OSError as err:
        raise CheckpointError(f"{path} can't be read ({err.strerror})") from None
    except ValueError as err:
        raise CheckpointError(f"{path}: not JSON: {err}") from None
    if not isinstance(value, dict):
        raise CheckpointError(f"{path}: holds no JSON object")
    return value


def _read(folder: Path, name: str, hashes: Mapping[str, str]) -> tuple[dict[str, Tensor], str]:
    """The tensors of a file, and the silo it names; refused where its hash is another than it was."""
    return storage.read_tensors(folder / name, hashes.get(name, ""))


def _rank_of(tensors: Mapping[str, Tensor], lora: Lora) -> Lora:
    """The settings at the rank that the tensors have, which a merge may have raised; the same scaling."""
    ranks = {len(value) for name, value in tensors.items() if name.endswith(".lora_A.weight")}
    return lora.of_rank(ranks.pop()) if len(ranks) == 1 else lora
