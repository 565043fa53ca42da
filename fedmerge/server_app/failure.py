"""What a run leaves when it fails: the adapter of the last closed round, and failed.json with the reason."""

from __future__ import annotations

import logging
import time
from collections.abc import Iterator
from contextlib import contextmanager

from fedmerge.config import Config
from fedmerge.errors import FedMergeError
from fedmerge.server import storage
from fedmerge.server.folder import RunFolder
from fedmerge.server.strategy import MergeStrategy
from fedmerge.server_app.muster import Muster
from fedmerge.server_app.outcome import described, task_type

logger = logging.getLogger(__name__)

FAILED = "failed.json"


@contextmanager
def intact(config: Config, folder: RunFolder, silos: Muster, strategy: MergeStrategy) -> Iterator[None]:
    """Where what is inside fails, write adapter/ of the last closed round and failed.json; the error goes on.

    No adapter is written where no round was closed, and none where silos keep a part of each to themselves:
    rounds/ has what there is.
    """
    try:
        yield
    except Exception as failure:
        try:
            _leave(config, folder, silos, strategy, failure)
        except FedMergeError as second:  # a full disk, say: it must not hide why the run failed
            logger.warning("the failure could not be written down: %s", second)
        raise


def _leave(
    config: Config, folder: RunFolder, silos: Muster, strategy: MergeStrategy, failure: Exception
) -> None:
    closed = [report.round for report in strategy.rounds if not report.failed]
    path, made = "", 0
    if closed and strategy.broadcast is not None and not config.silo.lora.private_parts:
        made = strategy.standing.made(strategy.broadcast, closed[-1])
        adapter = described(strategy.broadcast, config, silos, made)
        written = folder.write_adapter(
            adapter, base_model=config.silo.base.model, task_type=task_type(config)
        )
        path = str(written)
    record = {
        "error": type(failure).__name__,
        "sentence": " ".join(str(failure).split()),
        "rounds_closed": closed[-1] if closed else 0,
        "adapter": path,
        "adapter_of_round": made,
        "time": round(time.time(), 3),
    }
    with storage.writing(folder.path):
        storage.write_json(folder.path / FAILED, record)
