"""The rows that the server holds for its own scores: `data.server`."""

from __future__ import annotations

import dataclasses
from collections.abc import Sequence

from fedmerge.errors import ConfigError, nearest
from fedmerge.silo.columns import labels_of
from fedmerge.silo.data import SiloData
from fedmerge.silo.settings import SiloSettings
from fedmerge.silo.sources import SPLITS, read_splits

SERVER = "server"


def load_server(settings: SiloSettings, labels: Sequence[str]) -> SiloData:
    """The server's rows as a silo that is only scored on.

    Its validation rows are the source's validation split, or all its rows where it has none; its train rows
    are the source's where it has a validation split beside them.

    Args:
        settings: of the run; `data.server` is a source, with the columns that `data` names.
        labels: that the silos agreed on; empty where the task has none.

    Raises:
        ConfigError: the source can't be read or has a label that the silos don't know; or the task's head is
            made of train rows, and there are none.
    """
    try:
        found = read_splits(dataclasses.replace(settings.data, source=settings.data.server))
    except ConfigError as error:
        raise ConfigError(f"data.server: {error}") from None
    if "validation" in found:
        data = SiloData(SERVER, found["train"], found["validation"], [])
    else:
        data = SiloData(SERVER, [], [row for split in SPLITS for row in found.get(split, [])], [])
    _check_labels(data, settings, labels)
    if settings.task.head == "centroid" and settings.task.kind == "classification" and not data.train:
        raise ConfigError(
            f"data.server = {settings.data.server!r}: task.head = 'centroid' is made of train rows, and this "
            "has rows to score on alone; give a folder with train and validation files"
        )
    return data


def _check_labels(data: SiloData, settings: SiloSettings, labels: Sequence[str]) -> None:
    if not settings.data.label:
        return
    if unknown := sorted({*labels_of([*data.train, *data.validation], settings.data.label)} - {*labels}):
        raise ConfigError(
            f"data.server = {settings.data.server!r}: no silo has the label {unknown[0]!r}; "
            f"{nearest(unknown[0], labels)}"
        )
