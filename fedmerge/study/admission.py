"""May this adapter be merged and scored here? Asked of what it says of its base, its labels and its name."""

from __future__ import annotations

import json
from collections.abc import Iterable, Sequence
from pathlib import Path
from typing import TYPE_CHECKING

from fedmerge.errors import AdapterMismatch, ConfigError

if TYPE_CHECKING:
    from fedmerge.adapters import Adapter


def check_fingerprint(adapter: Adapter, found: str, base: str, name: str) -> None:
    """Refuse an adapter of another base: shapes may fit by chance, and the scores would mean nothing.

    Args:
        adapter: one that does not say what it was trained on goes along.
        found: the fingerprint of the base here.
        base: what the base is called.
        name: of the adapter, for the sentence.

    Raises:
        AdapterMismatch: the adapter's fingerprint is another.
    """
    trained_on = adapter.metadata.get("fingerprint", "")
    if trained_on and trained_on != found:
        raise AdapterMismatch(
            f"{name}: trained on the base with fingerprint {trained_on[:12]}, "
            f"but base.model = {base!r} has {found[:12]}"
        )


def check_labels(adapter: Adapter, labels: Sequence[str], name: str = "the adapter") -> None:
    """Refuse a trained head of other labels: its outputs are told apart by their order alone.

    Raises:
        AdapterMismatch: the adapter has a head and was trained on other labels.
    """
    trained_on = labels_of(adapter)
    if has_head(adapter) and trained_on and trained_on != list(labels):
        raise AdapterMismatch(
            f"{name}: its head was trained on {len(trained_on)} labels ({trained_on[0]!r} first), "
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


def adapter_folders(given: Iterable[str]) -> list[str]:
    """The adapters that are meant: a folder that is none, but holds some, stands for those, sorted by name.

    Args:
        given: folders or Hub ids.

    Raises:
        ConfigError: a folder with neither an adapter nor folders of adapters.
    """
    found: list[str] = []
    for source in given:
        folder = Path(source)
        if not folder.is_dir() or _is_adapter(folder):
            found.append(source)  # what is no folder here may be a Hub id
            continue
        inside = sorted(str(child) for child in folder.iterdir() if child.is_dir() and _is_adapter(child))
        if not inside:
            raise ConfigError(
                f"{folder} holds neither an adapter (adapter_config.json) nor folders of adapters"
            )
        found += inside
    return found


def name_of(source: str) -> str:
    """What an adapter is called by default: its folder's name, or of a run's `adapter/` the run's.

    Example:
        >>> name_of("inbox/site-a/"), name_of("runs/site-b/adapter"), name_of("owner/site-c")
        ('site-a', 'site-b', 'site-c')
    """
    path = Path(source)
    if path.name in ("", "adapter"):
        path = path.absolute().parent if path.name else path.absolute()
    return path.name


def _is_adapter(folder: Path) -> bool:
    return (folder / "adapter_config.json").is_file()
