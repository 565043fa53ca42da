"""Flower's ServerApp: `muster` the silos, merge in rounds, train the `baselines`, `scoring`, result."""

from __future__ import annotations

import logging
from collections.abc import Mapping
from typing import Any

from flwr.app import Context
from flwr.serverapp import Grid, ServerApp

from fedmerge import logs
from fedmerge.config import read_config
from fedmerge.server.heap import return_freed_memory
from fedmerge.server.streaming import StreamingGrid
from fedmerge.server_app.authority import authority
from fedmerge.server_app.conduct import conduct
from fedmerge.server_app.link import bound_retries
from fedmerge.server_app.noting import Noting
from fedmerge.server_app.trackers import tracked
from fedmerge.server_app.verdict import spoken

flower = logging.getLogger("flwr")  # what it says reaches `flwr run --stream`

app = ServerApp()


@app.main()
def main(grid: Grid, context: Context) -> None:
    """Conduct the run that the run-config describes; an error makes Flower's status "failed"."""
    with spoken():
        logs.configure("server", run=str(context.run_id))
        config = read_config(context.run_config)
        bound_retries(grid)
        return_freed_memory()
        deployed = authority()
        config = deployed.placed(config) if deployed else config
        with tracked(config, Noting()) as observer:
            identity = deployed.identity if deployed else None
            result = conduct(config, StreamingGrid(grid, packed=True), observer, identity=identity)
    for line in summary(result):
        flower.info("%s", line)


def summary(result: Mapping[str, Any]) -> list[str]:
    """What `flwr run --stream` shows at the end: means over silos, what the gate rejected, and the adapter.

    Example:
        >>> summary({"metric": "accuracy", "candidates": {"base": {"mean": 0.5}, "merged": {"mean": 0.75}},
        ...          "kept": "merged", "adapter": "/runs/a/adapter"})
        ['accuracy, mean over silos', '  0.5000  base', '  0.7500  merged (kept)', 'adapter: /runs/a/adapter']
    """
    means = {name: row["mean"] for name, row in result["candidates"].items() if "mean" in row}
    rows = [f"  {mean:.4f}  {name}{' (kept)' * (name == result['kept'])}" for name, mean in means.items()]
    rejected = [f"rejected by the gate: {sentence}" for sentence in result.get("rejected", ())]
    return [f"{result['metric']}, mean over silos", *rows, *rejected, f"adapter: {result['adapter']}"]
