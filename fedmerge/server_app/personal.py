"""What becomes of private parts at the end of a run: an adapter for everybody, and each silo's own."""

from __future__ import annotations

import logging
from collections.abc import Iterable
from dataclasses import dataclass, replace
from pathlib import Path
from typing import Any

from fedmerge.adapters import Adapter
from fedmerge.config import Config
from fedmerge.errors import CheckpointError
from fedmerge.server.folder import RunFolder
from fedmerge.server_app.outcome import task_type
from fedmerge.server_app.scoring import round_of
from fedmerge.silo.order import Order
from fedmerge.silo.private import PersonalPart, PrivateStates, completed, private_part
from fedmerge.station import private_folder

logger = logging.getLogger(__name__)


@dataclass(frozen=True)
class Results:
    """Writes the adapters that a run leaves.

    Args:
        config: of the run.
        folder: where they are written.
        initial: the whole adapter of round 0, with the values that a silo has before it trained.
    """

    config: Config
    folder: RunFolder
    initial: Adapter

    def write(self, kept: Adapter, name: str, silos: Iterable[str]) -> dict[str, Any]:
        """Write the run's result, and each silo's own where there are any.

        Args:
            kept: the candidate that is the result: all of it, or the shared part.
            name: of the candidate.
            silos: whose own adapters can be written: in a simulation all, in a deployment none.

        Returns:
            What result.json tells: the path as "adapter"; with private parts also "private", "notes", and
            the path of the silos' own as "personal".
        """
        parts = self.config.silo.lora.private_parts
        if not parts:
            return {"adapter": str(self._write(kept))}
        text = ", ".join(parts)
        told: dict[str, Any] = {"private": text, "notes": [note(parts)]}
        everybodys = completed(kept, private_part(self.initial, parts))
        told["adapter"] = str(self._write(_with(everybodys, private=f"{text}, at its initial values")))
        round = round_of(name)
        before = (self.config.run.rounds if round is None else round) + 1
        for silo in silos:
            try:
                path = self._write(self._own(kept, silo, before), silo)
                told["personal"] = str(path.parent)
            except CheckpointError as err:
                logger.warning("%s", err)
                told["notes"].append(f"silo {silo!r} has no adapter of its own: {err}")
        return told

    def _own(self, kept: Adapter, silo: str, before: int) -> Adapter:
        """The result, completed by what the silo kept of the round that made it."""
        parts = self.config.silo.lora.private_parts
        part = PersonalPart(parts, PrivateStates(private_folder(self.config)))
        own = part.whole(kept, Order(silo), before, lambda _: self.initial)
        return _with(own, private=f"{', '.join(parts)}, of silo {silo!r}", silo=silo)

    def _write(self, adapter: Adapter, silo: str = "") -> Path:
        return self.folder.write_adapter(
            adapter, base_model=self.config.silo.base.model, task_type=task_type(self.config), silo=silo
        )


def note(parts: tuple[str, ...]) -> str:
    """What a reader of the result must know of its private parts.

    Example:
        >>> note(("B",)).split(": ")[1]
        'as B is zero, it leaves the layers as they are'
    """
    if "B" in parts:
        effect = "as B is zero, it leaves the layers as they are"
    elif "A" in parts:
        effect = "a pair of factors that no silo has"
    else:
        effect = "as the head is zero, it tells no labels apart"
    own = " and ".join(parts)
    return (
        f"the silos' scores of merged adapters are each with the silo's own {own}, never sent; adapter/ has "
        f"{own} at initial values, a start for a silo that trains its own: {effect}"
    )


def _with(adapter: Adapter, **metadata: str) -> Adapter:
    return replace(adapter, metadata=adapter.metadata | metadata)
