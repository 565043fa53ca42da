"""Where rows come from: the built-in text, files, folders and the Hugging Face Hub."""

from __future__ import annotations

from collections.abc import Iterator, Mapping
from contextlib import contextmanager
from pathlib import Path

from fedmerge.errors import ConfigError
from fedmerge.silo.builtin import corpus
from fedmerge.silo.columns import Rows, checked
from fedmerge.silo.files import SPLIT_STEMS, looks_like_a_path, named_classes, read_file, split_files
from fedmerge.silo.settings import DataSettings

BUILTIN = "builtin"
SPLITS = ("train", "validation", "test")


def read_splits(settings: DataSettings) -> dict[str, Rows]:
    """All rows of a source in the order it has them, columns checked, labels as text.

    Args:
        settings: its source is "builtin", a file, a folder, or a Hub id ("id" or "id:config").

    Returns:
        Split -> rows: "train", and "validation" and "test" where the source has them.

    Raises:
        ConfigError: the source is missing, damaged, empty, or lacks a column.
    """
    if settings.source == BUILTIN:
        found = _builtin(settings)
    elif looks_like_a_path(settings.source):
        found = _local(Path(settings.source).expanduser())
    else:
        found = _hub(settings.source)
    splits = {}
    for split, rows in found.items():
        where = f"data.source = {settings.source!r}, {split} split"
        if not rows:
            raise ConfigError(f"{where}: it has no rows")
        if split == "train" or not _unlabelled(rows, settings.label):
            splits[split] = checked(rows, settings, where)
    return splits


def chosen_names(settings: DataSettings) -> list[str]:
    """The names in data.silos, sorted; empty where it is."""
    return sorted({name.strip() for name in settings.silos.split(",")} - {""})


def _builtin(settings: DataSettings) -> dict[str, Rows]:
    splits: dict[str, list[dict[str, str]]] = {split: [] for split in SPLITS}
    for silo in chosen_names(settings) or corpus.DEFAULT_SILOS:
        for document in corpus.silo_documents(silo):
            split = corpus.split_of(document.name)
            text = document.text if split == "train" else document.text[: corpus.LONGEST_HELD_OUT]
            splits[split].append({"text": text, "silo": silo, "name": document.name})
    return dict(splits)


def _local(path: Path) -> dict[str, Rows]:
    if not path.exists():
        raise ConfigError(f"data.source = {str(path)!r}: no such file or folder (from {Path.cwd()})")
    files = split_files(path) if path.is_dir() else {"train": [path]}
    return {split: [row for file in paths for row in read_file(file)] for split, paths in files.items()}


def _hub(source: str) -> dict[str, Rows]:
    import datasets  # noqa: PLC0415  takes seconds, and only this source needs it

    name, _, config = source.partition(":")
    try:
        with _no_progress_bars():
            found = datasets.load_dataset(name, config or None)
            tables = {split: named_classes(found[split].to_list(), found[split].features) for split in found}
    except Exception as error:  # whatever the network, the cache and a data set's files can raise
        call = f"datasets.load_dataset({name!r}{f', {config!r}' if config else ''})"
        raise ConfigError(
            f"data.source = {source!r}: no such file or folder here, and as a Hub id it can't be loaded "
            f"({type(error).__name__}: {str(error).splitlines()[0] if str(error) else 'no reason given'}). "
            f"On a machine without network, run {call} once with network and bring its HF_HOME folder here"
        ) from error
    return _known_splits(tables, source)


def _known_splits(tables: Mapping[str, Rows], source: str) -> dict[str, Rows]:
    splits: dict[str, Rows] = {}
    for split, names in SPLIT_STEMS.items():
        for name in names:
            if name in tables:
                splits.setdefault(split, tables[name])
    if "train" not in splits:
        there = ", ".join(tables)
        raise ConfigError(f"data.source = {source!r}: no train split; there are: {there}")
    return splits


def _unlabelled(rows: Rows, label: str) -> bool:
    """Whether no row has a label: the test splits of contests, which count as missing."""
    return bool(label) and label in rows[0] and all(row.get(label) is None for row in rows)


@contextmanager
def _no_progress_bars() -> Iterator[None]:
    from datasets.utils import logging  # noqa: PLC0415

    shown = logging.is_progress_bar_enabled()
    logging.disable_progress_bar()
    try:
        yield
    finally:
        if shown:
            logging.enable_progress_bar()
