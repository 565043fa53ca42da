"""Personal parts: what of the adapter a silo keeps to itself, and the files in which it remembers it.

A private tensor is in no message. The silo completes what it receives by its own tensors, trains all of it,
sends the difference of the shared ones, and writes its own to a file: a process that serves it next may be
another one.

Reference:
    Guo et al., Selective Aggregation for Low-Rank Adaptation in Federated Learning, 2024, arXiv 2410.01463
    (FedSA-LoRA: A is shared, B private).
    Arivazhagan et al., Federated Learning with Personalization Layers, 2019, arXiv 1912.00818 (FedPer: a
    private head).
"""

from __future__ import annotations

import re
from collections.abc import Callable, Collection, Mapping
from dataclasses import dataclass, replace
from pathlib import Path

from torch import Tensor

from fedmerge.adapters import Adapter
from fedmerge.adapters.pairs import A_SUFFIX, B_SUFFIX
from fedmerge.errors import CheckpointError, ConfigError, WireError
from fedmerge.silo.order import Order
from fedmerge.wire.filenames import file_name
from fedmerge.wire.tensorfile import read_tensors, write_tensors

_FILE = re.compile(r"(\d{4,})\.safetensors")


def is_private(name: str, parts: Collection[str]) -> bool:
    """Whether a tensor belongs to a private part: "A" and "B" are LoRA's factors, "head" is what starts so.

    Example:
        >>> [is_private(name, ["B", "head"]) for name in ("q.lora_A.weight", "q.lora_B.weight", "head.bias")]
        [False, True, True]
    """
    return (
        ("A" in parts and name.endswith(A_SUFFIX))
        or ("B" in parts and name.endswith(B_SUFFIX))
        or ("head" in parts and name.startswith("head."))
    )


def shared_part(adapter: Adapter, parts: Collection[str]) -> Adapter:
    """The adapter without its private tensors: all that travels."""
    tensors = {name: tensor for name, tensor in adapter.tensors.items() if not is_private(name, parts)}
    return replace(adapter, tensors=tensors)


def private_part(adapter: Adapter, parts: Collection[str]) -> dict[str, Tensor]:
    """The private tensors of an adapter."""
    return {name: tensor for name, tensor in adapter.tensors.items() if is_private(name, parts)}


def completed(shared: Adapter, own: Mapping[str, Tensor]) -> Adapter:
    """A shared part together with private tensors."""
    return replace(shared, tensors={**shared.tensors, **own})


def shared_statistics(
    statistics: Mapping[str, Mapping[str, Tensor]], parts: Collection[str]
) -> dict[str, dict[str, Tensor]]:
    """Statistics of shared tensors, and of modules: what is measured of private tensors stays, too."""
    return {
        name: {key: tensor for key, tensor in values.items() if not is_private(key, parts)}
        for name, values in statistics.items()
    }


def check_parts(initial: Adapter, parts: Collection[str]) -> None:
    """Refuse parts that the adapter does not have, and parts that leave nothing to share.

    Args:
        initial: the whole adapter.
        parts: of `lora.private`.

    Raises:
        ConfigError: the message names the part.
    """
    empty = [part for part in parts if not private_part(initial, (part,))]
    if empty:
        raise ConfigError(f"lora.private names {empty[0]!r}, and the adapter of this task has no such part")
    if not shared_part(initial, parts).tensors:
        raise ConfigError(f"lora.private = {', '.join(parts)!r}: nothing is left to share")


@dataclass(frozen=True)
class PrivateStates:
    """The private tensors of silos, a file for each round that a silo trained in: <silo>/<round>.safetensors.

    All rounds are kept: the result may be that of any round, and a round that is run again starts from the
    state that it started from the first time.

    Args:
        folder: of one run; the one that it lies in must be there.
    """

    folder: Path

    def before(self, silo: str, round: int) -> dict[str, Tensor] | None:
        """The newest tensors of a round below `round`; None where there are none.

        Raises:
            CheckpointError: the file is damaged, or another silo's.
        """
        earlier = [number for number in self._rounds(silo) if number < round]
        return self._read(silo, earlier[-1]) if earlier else None

    def write(self, silo: str, round: int, tensors: Mapping[str, Tensor]) -> None:
        """Write a round's tensors whole or not at all, and forget later rounds: they are to be run again.

        Raises:
            CheckpointError: the disk refuses, or the folder is not where it should be.
        """
        path, later = self.path(silo, round), [number for number in self._rounds(silo) if number > round]
        try:
            path.parent.mkdir(parents=True, exist_ok=True)
            write_tensors(path, tensors, {"silo": silo, "round": str(round)})
            for number in later:
                self.path(silo, number).unlink()
        except (OSError, WireError) as err:
            raise CheckpointError(f"silo {silo!r}: its private tensors can't be written: {err}") from err

    def path(self, silo: str, round: int) -> Path:
        """Where a round's tensors lie."""
        return self.folder / file_name(silo) / f"{round:04d}.safetensors"

    def _rounds(self, silo: str) -> list[int]:
        home = self.folder.parent
        if not home.is_dir():
            raise CheckpointError(
                f"{home} is not there: private tensors (lora.private) would be lost; in a simulation give "
                "run.output an absolute path, on a node put its folder 'state' back"
            )
        names = [path.name for path in (self.folder / file_name(silo)).glob("*.safetensors")]
        return sorted(int(match[1]) for name in names if (match := _FILE.fullmatch(name)))

    def _read(self, silo: str, round: int) -> dict[str, Tensor]:
        path = self.path(silo, round)
        try:
            tensors, metadata = read_tensors(path)
        except WireError as err:
            raise CheckpointError(f"silo {silo!r}: its private tensors of round {round}: {err}") from err
        if (metadata.get("silo"), metadata.get("round")) != (silo, str(round)):
            raise CheckpointError(f"{path} is not what silo {silo!r} kept of round {round}: {metadata}")
        return tensors


@dataclass(frozen=True)
class PersonalPart:
    """What silos keep to themselves in a run, and how it comes together with what they receive.

    Args:
        parts: of `lora.private`; empty where everything is shared.
        states: where it is remembered; None where nobody trains in rounds, as in `fedmerge evaluate`.
    """

    parts: tuple[str, ...] = ()
    states: PrivateStates | None = None

    def lacks(self, adapter: Adapter) -> bool:
        """Whether an adapter is only the shared part. One with all tensors is taken as it is."""
        return bool(self.parts) and not private_part(adapter, self.parts)

    def whole(
        self, adapter: Adapter, order: Order, before: int, initial: Callable[[tuple[str, ...]], Adapter]
    ) -> Adapter:
        """The adapter, completed by what the silo made in its last round below `before`.

        Args:
            adapter: shared or whole.
            order: names silo, run and labels.
            before: a round.
            initial: of labels, gives the adapter of round 0, whose values a silo has before it trained.

        Raises:
            ConfigError: nobody said where private tensors are kept.
            CheckpointError: the silo's file is damaged, or does not fit.
        """
        if not self.lacks(adapter):
            return adapter
        wanted = private_part(initial(order.labels), self.parts)
        states = self._states(order.run)
        own = states.before(order.silo, before)
        if own is None:
            return completed(adapter, wanted)
        shapes, found = ({name: t.shape for name, t in tensors.items()} for tensors in (wanted, own))
        if shapes != found:
            strange = sorted(name for name in {*shapes, *found} if shapes.get(name) != found.get(name))
            raise CheckpointError(
                f"{states.folder / file_name(order.silo)}: what silo {order.silo!r} kept of a round below "
                f"{before} does not fit its adapter, by {len(strange)} tensors ({strange[0]!r} first)"
            )
        return completed(adapter, own)

    def keep(self, trained: Adapter, order: Order) -> None:
        """Remember the private tensors of what an order trained."""
        self._states(order.run).write(order.silo, order.round, private_part(trained, self.parts))

    def _states(self, run: str) -> PrivateStates:
        """Where they are kept; a folder that serves several runs has one in it for each."""
        if self.states is None:
            raise ConfigError(
                f"lora.private = {', '.join(self.parts)!r}: the adapter has no private tensors, and there is "
                "no folder here in which silos remember theirs"
            )
        return PrivateStates(self.states.folder / file_name(run)) if run else self.states
