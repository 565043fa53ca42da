"""MLflow: a run in `<run>/mlflow/mlflow.db`, or on the server that MLFLOW_TRACKING_URI names.

    mlflow ui --backend-store-uri sqlite:///runs/<run>/mlflow/mlflow.db

That command is mlflow's, as mlflow-skinny has no UI. The experiment is MLFLOW_EXPERIMENT_NAME, or else
`run.name`. MLflow's own telemetry is switched off before it is imported, and a server that does not answer is
given up soon: both unless the environment says otherwise.
"""

from __future__ import annotations

import os
import re
import time
import warnings
from collections.abc import Iterator, Mapping, Sequence
from contextlib import contextmanager
from pathlib import Path
from typing import Any

from fedmerge.config import Config
from fedmerge.server.observer import Silent
from fedmerge.study.trackers.figures import Figures, final_figures, round_figures
from fedmerge.study.trackers.needs import check_installed

FOLDER = "mlflow"
_ENVIRONMENT = {
    "MLFLOW_DISABLE_TELEMETRY": "true",
    "MLFLOW_LOGGING_LEVEL": "WARNING",
    "MLFLOW_HTTP_REQUEST_MAX_RETRIES": "1",  # MLflow's 7 keep a run waiting for minutes
    "MLFLOW_HTTP_REQUEST_TIMEOUT": "20",
}
_MOST = 100  # entries of one request: MLflow's limit for parameters
_LONGEST = {"param": 6000, "tag": 8000, "name": 250}  # characters


class MLflow(Silent):
    """A tracker that writes a run of MLflow.

    The config stands there as parameters, the scores as metrics whose step is the round, the folders of the
    run and of its adapter as the tags "fedmerge.run" and "fedmerge.adapter".

    Args:
        config: of the run.
        folder: of the run.

    Raises:
        ConfigError: neither mlflow nor mlflow-skinny is installed.
    """

    def __init__(self, config: Config, folder: Path) -> None:
        """Write nothing yet."""
        check_installed("mlflow", "mlflow")
        self._config, self._folder = config, folder
        self._run: Run | None = None

    def run_started(self, plan: Mapping[str, Any]) -> None:
        """Begin the run: parameters and tags."""
        experiment = os.environ.get("MLFLOW_EXPERIMENT_NAME") or self._config.run.name
        self._run = Run(_store(self._folder), experiment, self._folder)
        self._run.parameters({key: str(value) for key, value in self._config.flat.items()})
        self._run.tags({"fedmerge.run": str(self._folder), "fedmerge.silos": ", ".join(plan["silos"])})

    def round_closed(self, report: Mapping[str, Any]) -> None:
        """Write the round's figures, and who was refused and why."""
        if self._run is not None:
            self._run.metrics(round_figures(report), int(report["round"]))
            told = {f"fedmerge.refused.{refusal['silo']}": refusal["reason"] for refusal in report["refused"]}
            self._run.tags(told)

    def finished(self, result: Mapping[str, Any]) -> None:
        """Write the final scores and where the adapter is, and end the run well."""
        if self._run is not None:
            self._run.metrics(final_figures(result), len(result["rounds"]))
            self._run.tags({"fedmerge.adapter": str(result["adapter"]), "fedmerge.kept": result["kept"]})
            self._run.end("FINISHED")
            self._run = None

    def close(self) -> None:
        """End a run that did not come to its end as failed."""
        if self._run is not None:
            self._run.end("FAILED")


class Run:
    """A run of MLflow that is being written, each call at once and in this thread.

    Args:
        store: MLflow's URI of where runs are kept.
        experiment: name of the experiment; made where it does not exist.
        folder: of our run: gives the run its name and, in a local store, a place for artifacts.
    """

    def __init__(self, store: str, experiment: str, folder: Path) -> None:
        """Begin the run."""
        with _quietly():
            from mlflow import entities
            from mlflow.tracking import MlflowClient

            self._entities = entities
            self._client = MlflowClient(tracking_uri=store)
            known = self._client.get_experiment_by_name(experiment)
            place = (folder / FOLDER / "artifacts").as_uri() if store.startswith("sqlite:") else None
            number = known.experiment_id if known else self._client.create_experiment(experiment, place)
            self._id = self._client.create_run(number, run_name=folder.name).info.run_id

    def parameters(self, values: Mapping[str, str]) -> None:
        """Write parameters; what is longer than MLflow takes is cut."""
        made = [self._entities.Param(key, text[: _LONGEST["param"]]) for key, text in values.items()]
        self._write("params", made)

    def tags(self, values: Mapping[str, str]) -> None:
        """Write tags."""
        made = [
            self._entities.RunTag(metric_name(key), text[: _LONGEST["tag"]]) for key, text in values.items()
        ]
        self._write("tags", made)

    def metrics(self, figures: Figures, step: int) -> None:
        """Write figures of one step."""
        now = int(time.time() * 1000)
        made = [
            self._entities.Metric(metric_name(name), float(value), now, step)
            for name, value in figures.items()
        ]
        self._write("metrics", made)

    def end(self, status: str) -> None:
        """End the run as "FINISHED" or "FAILED"."""
        with _quietly():
            self._client.set_terminated(self._id, status)

    def _write(self, kind: str, entries: Sequence[Any]) -> None:
        with _quietly():
            for start in range(0, len(entries), _MOST):
                self._client.log_batch(self._id, **{kind: entries[start : start + _MOST]})


def metric_name(name: str) -> str:
    """A figure's name in the characters that MLflow takes: letters, digits and "_-.: /".

    Example:
        >>> metric_name("final/accuracy/mean/shadow/ties(density=0.2) @ product(rank=8)")
        'final/accuracy/mean/shadow/ties density:0.2 product rank:8'
    """
    words = re.sub(r"[^\w\-. :/]+", " ", name.replace("=", ":")).split()
    parts = [part.strip() for part in " ".join(words).split("/")]
    # MLflow takes no name that is no plain path: an empty part, ".", "..".
    return "/".join(part if part.strip(".") else "_" for part in parts)[: _LONGEST["name"]].rstrip("/ ")


def _store(folder: Path) -> str:
    """The store that the environment names, or a database in the run's folder."""
    if named := os.environ.get("MLFLOW_TRACKING_URI"):
        return named
    (folder / FOLDER).mkdir(parents=True, exist_ok=True)
    return f"sqlite:///{folder / FOLDER / 'mlflow.db'}"


@contextmanager
def _quietly() -> Iterator[None]:
    """Nothing sent home, nothing said of a third party's own deprecations."""
    for key, value in _ENVIRONMENT.items():
        os.environ.setdefault(key, value)
    with warnings.catch_warnings():
        warnings.simplefilter("ignore")
        yield
