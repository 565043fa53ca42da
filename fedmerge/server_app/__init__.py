"""Flower's ServerApp: `muster` the silos, merge in rounds, train the `baselines`, `scoring`, result."""

from __future__ import annotations

from flwr.app import Context
from flwr.serverapp import Grid, ServerApp

from fedmerge.config import read_config
from fedmerge.server.streaming import StreamingGrid
from fedmerge.server_app.conduct import conduct

app = ServerApp()


@app.main()
def main(grid: Grid, context: Context) -> None:
    """Conduct the run that the run-config describes; an error makes Flower's status "failed"."""
    conduct(read_config(context.run_config), StreamingGrid(grid))
