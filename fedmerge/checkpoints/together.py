"""Do these fine-tunes belong to this base? Asked of headers and samples, before any arithmetic."""

from __future__ import annotations

import hashlib
from collections import Counter
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, replace

import torch
from torch import Tensor

from fedmerge.adapters.checks import check_weights
from fedmerge.checkpoints.deltas import Client
from fedmerge.errors import AdapterMismatch, ConfigError, RuleError, nearest
from fedmerge.wire.checkpoint import Checkpoint

SAMPLE = 1024
"""Values of the beginning, the middle and the end of a tensor that a name and a likeness read."""

LEAST_COSINE = 0.5
"""Median cosine between a fine-tune's matrices and its base's. Fine-tunes have .99 and more, models that were
trained from another start some .0."""

MISSING, EXTRA = ("refuse", "base"), ("refuse", "drop")


@dataclass(frozen=True)
class Policy:
    """What becomes of tensors that not all have.

    Args:
        missing: of a fine-tune that lacks a tensor of the base: "refuse", or "base": it did not change it.
        extra: of a tensor that the base lacks: "refuse", or "drop": it is left out.

    Raises:
        ConfigError: another word.
    """

    missing: str = "refuse"
    extra: str = "refuse"

    def __post_init__(self) -> None:
        """Check the words."""
        for name, given, known in (("missing", self.missing, MISSING), ("extra", self.extra, EXTRA)):
            if given not in known:
                raise ConfigError(f"{name} = {given!r}: {nearest(given, known)}")


def check_fit(label: str, given: Checkpoint, base: Checkpoint, policy: Policy) -> list[str]:
    """Raise unless a fine-tune has the base's tensors in their shapes; what a policy bore is told.

    Raises:
        AdapterMismatch: another architecture, missing or extra tensors, another shape, quantised weights.
    """
    _check_config(label, given, base)
    missing = sorted(base.entries.keys() - given.entries.keys())
    extra = sorted(given.entries.keys() - base.entries.keys())
    if missing and policy.missing == "refuse":
        raise AdapterMismatch(
            f"{label} lacks {some(missing)} of the base; --missing base takes it as unchanged"
        )
    if extra and policy.extra == "refuse":
        raise AdapterMismatch(
            f"{label} has {some(extra)}, which the base has not; --extra drop leaves it out"
        )
    for name in sorted(given.entries.keys() & base.entries.keys()):
        found, expected = given.entries[name], base.entries[name]
        if found.shape != expected.shape:
            raise AdapterMismatch(f"{label}: {name!r} has shape {found.shape}, the base has {expected.shape}")
        if found.dtype != expected.dtype and not (
            found.dtype.is_floating_point and expected.dtype.is_floating_point
        ):
            raise AdapterMismatch(f"{label}: {name!r} is {found.dtype}, the base has {expected.dtype}")
    notes = [f"{label} lacks {some(missing)}: taken as unchanged"] if missing else []
    return notes + ([f"{label} has {some(extra)} besides: left out"] if extra else [])


def _check_config(label: str, given: Checkpoint, base: Checkpoint) -> None:
    for whose, config in ((label, given.config), ("the base", base.config)):
        if config.get("quantization_config"):
            raise AdapterMismatch(
                f"{whose} is quantised (config.json has quantization_config): merge the original"
            )
    kinds = given.config.get("model_type"), base.config.get("model_type")
    if all(kinds) and kinds[0] != kinds[1]:
        raise AdapterMismatch(f"{label} is a {kinds[0]!r}, the base a {kinds[1]!r}: another base")


def some(names: Sequence[str]) -> str:
    """The first names of many.

    Example:
        >>> some(["a", "b", "c", "d"])
        "'a', 'b', 'c' and 1 more"
    """
    shown = ", ".join(repr(name if len(name) <= 120 else name[:117] + "...") for name in names[:3])
    return shown if len(names) <= 3 else f"{shown} and {len(names) - 3} more"


def check_related(label: str, given: Checkpoint, base: Checkpoint) -> None:
    """Raise where a model was surely trained from another start: its matrices point elsewhere.

    Shapes fit between all models of one architecture; a merge of unrelated ones is noise.

    Raises:
        AdapterMismatch: the median cosine of its matrices with the base's is below `LEAST_COSINE`.
    """
    cosines = []
    for name, entry in base.entries.items():
        if len(entry.shape) >= 2 and entry.dtype.is_floating_point and name in given.entries:
            one = torch.cat(_samples(given, name)).to(torch.float64)
            other = torch.cat(_samples(base, name)).to(torch.float64)
            lengths = float(one.norm() * other.norm())
            if lengths:
                cosines.append(float(one @ other) / lengths)
    if cosines and (median := sorted(cosines)[len(cosines) // 2]) < LEAST_COSINE:
        raise AdapterMismatch(
            f"{label} was trained from another base: its matrices have a median cosine of {median:.2f} with "
            "the base's, fine-tunes have above .9"
        )


def _samples(checkpoint: Checkpoint, name: str) -> list[Tensor]:
    """The first, middle and last values of a tensor; all of a small one."""
    count = checkpoint.entries[name].coordinates
    if count <= 3 * SAMPLE:
        return [checkpoint.read(name)]
    starts = (0, (count - SAMPLE) // 2, count - SAMPLE)
    return [checkpoint.read(name, start, start + SAMPLE) for start in starts]


def clients_of(
    models: Mapping[str, Checkpoint], weights: Sequence[float] | None, names: Sequence[str] | None
) -> tuple[Client, ...]:
    """The fine-tunes of weight above 0, sorted by name; names out of the contents where none are given.

    Raises:
        RuleError: weights or names that can't be used.
    """
    checked = check_weights(weights, len(models))
    if names is not None and (len(names) != len(models) or len(set(names)) != len(names)):
        raise RuleError(f"names: {list(names)}, expected {len(models)} different names")
    counted = [position for position, weight in enumerate(checked) if weight > 0]
    labels = [list(models)[position] for position in counted]
    checkpoints = [models[label] for label in labels]
    called = _content_names(checkpoints) if names is None else [names[position] for position in counted]
    clients = [
        Client(name, label, checked[position], checkpoint)
        for name, label, position, checkpoint in zip(called, labels, counted, checkpoints, strict=True)
    ]
    return tuple(sorted(clients, key=lambda client: (client.name, client.weight)))


def _content_names(checkpoints: Sequence[Checkpoint]) -> list[str]:
    """A name for each out of samples of its values; those whose samples agree are read whole."""
    names = [_digest(checkpoint, whole=False) for checkpoint in checkpoints]
    shared = Counter(names)
    return [
        name if shared[name] == 1 else _digest(checkpoint, whole=True)
        for name, checkpoint in zip(names, checkpoints, strict=True)
    ]


def _digest(checkpoint: Checkpoint, *, whole: bool) -> str:
    state = hashlib.sha256()
    for name, entry in checkpoint.entries.items():
        state.update(f"{name} {entry.dtype} {entry.shape}\n".encode())
        width = max(1, min(entry.coordinates, 1 << 20))
        pieces = (
            (checkpoint.read(name, start, min(start + width, entry.coordinates))
             for start in range(0, entry.coordinates, width))
            if whole
            else _samples(checkpoint, name)
        )  # fmt: skip
        for piece in pieces:
            state.update(piece.view(torch.uint8).numpy().tobytes())
    return state.hexdigest()[:16]


def without(checkpoint: Checkpoint, names: Sequence[str]) -> Checkpoint:
    """A checkpoint without some of its tensors."""
    left = {name: entry for name, entry in checkpoint.entries.items() if name not in names}
    return replace(checkpoint, entries=left)
