"""Trackers: what their own readers find, what is refused before a run, and that their failures end none."""

from __future__ import annotations

import errno
import json
import logging
import threading
import warnings
from importlib import util
from importlib.metadata import EntryPoint
from pathlib import Path

import pytest

from fedmerge.config import defaults, read_config
from fedmerge.engine.local import run_local
from fedmerge.engine.superlink import run_flower
from fedmerge.errors import ConfigError
from fedmerge.server.observer import Silent
from fedmerge.server_app import trackers as named
from fedmerge.server_app.trackers import tracked, trackers
from fedmerge.study.trackers import mlflow, needs, tensorboard
from fedmerge.study.trackers.figures import final_figures, round_figures
from fedmerge.study.trackers.mlflow import metric_name

BOTH = "tensorboard, mlflow"
PLAN = {"silos": ["birds", "rocks"], "rounds": 2}
SHADOW = "shadow/ties(density=0.2) @ product(rank=8)"


def report(number: int, mean: float) -> dict:
    return {
        "round": number,
        "asked": ["birds", "rocks"],
        "admitted": {"birds": {"examples": 4.0, "norm": 2.5, "metrics": {"train_loss": 0.25}}},
        "refused": [{"silo": "rocks", "reason": "the delta holds NaN"}] if number == 2 else [],
        "missing": [],
        "received": {"metric": "accuracy", "mean": mean, "worst": mean - 0.25, "silos": {"birds": mean}},
        "merge": {"discarded_total": 0.125, "aggregation_error_total": 0.5},
        "bytes_up": 1000 * number,
        "bytes_down": 2000,
        "seconds": {"train": 1.5, "merge": 0.5},
    }


RESULT = {
    "metric": "accuracy",
    "candidates": {
        "base": {"mean": 0.25, "worst": 0.125, "test": {"birds": 0.25}, "validation": {}},
        SHADOW: {"mean": 0.625, "worst": 0.5, "test": {"birds": 0.625}, "validation": {}},
        "merged": {"mean": 0.75, "worst": 0.5, "test": {"birds": 1.0, "rocks": 0.5}, "validation": {}},
    },
    "kept": "merged",
    "rounds": [{}, {}],
    "bytes_up": 3000,
    "bytes_down": 4000,
    "seconds": {"rounds": 4.0},
    "adapter": "/runs/tiny/adapter",
}


def config_of(folder: Path, **changes):
    flat = defaults() | {"run.output": str(folder), "run.rounds": 2, "run.name": "tiny"}
    return read_config(flat | {key.replace("__", "."): value for key, value in changes.items()})


def tell_all(observer) -> None:
    observer.run_started(PLAN)
    observer.phase("training")
    observer.round_started(1, PLAN["silos"])
    observer.reply(1, "birds", "admitted", {})
    observer.round_closed(report(1, 0.5))
    observer.round_closed(report(2, 0.75))
    observer.finished(RESULT)


@pytest.fixture(scope="module")
def told(tmp_path_factory) -> Path:
    """The folder of a run of two rounds that both trackers were told of."""
    pytest.importorskip("tensorboard", reason="the test extra is not installed")
    pytest.importorskip("mlflow", reason="the test extra is not installed")
    folder = tmp_path_factory.mktemp("told")
    with pytest.MonkeyPatch.context() as patch:
        patch.delenv("MLFLOW_TRACKING_URI", raising=False)
        patch.delenv("MLFLOW_EXPERIMENT_NAME", raising=False)
        patch.chdir(folder)
        with tracked(config_of(folder, run__trackers=BOTH)) as observer:
            tell_all(observer)
    return folder


@pytest.fixture(scope="module")
def events(told):
    from tensorboard.backend.event_processing.event_accumulator import EventAccumulator

    return EventAccumulator(str(told / "tensorboard")).Reload()


def reader(folder: Path):
    from mlflow.tracking import MlflowClient

    with warnings.catch_warnings():
        warnings.simplefilter("ignore")  # a third party's own deprecations
        return MlflowClient(tracking_uri=f"sqlite:///{folder / 'mlflow' / 'mlflow.db'}")


def runs_of(folder: Path) -> list:
    client = reader(folder)
    experiments = [each.experiment_id for each in client.search_experiments()]
    return client.search_runs(experiments, order_by=["attributes.start_time ASC"])


def histories(folder: Path, name: str) -> list[tuple[int, float]]:
    run = runs_of(folder)[0]
    history = reader(folder).get_metric_history(run.info.run_id, name)
    return sorted((each.step, each.value) for each in history)


def test_a_round_in_numbers():
    figures = round_figures(report(2, 0.75))
    assert figures["received/accuracy/mean"] == 0.75 and figures["received/accuracy/silo/birds"] == 0.75
    assert figures["norm/silo/birds"] == 2.5 and figures["train_loss/silo/birds"] == 0.25
    assert figures["silos/asked"] == 2 and figures["silos/refused"] == 1 and figures["silos/missing"] == 0
    assert figures["bytes/up"] == 2000 and figures["seconds/merge"] == 0.5
    assert figures["merge/discarded"] == 0.125


def test_shadows_of_a_round_in_numbers():
    shadows = {"merged": {"metric": "accuracy", "mean": 0.5, "worst": 0.25}, "ties()": {"error": "no rows"}}
    figures = round_figures(report(1, 0.5) | {"shadows": shadows})
    assert {name for name in figures if name.startswith("shadow/")} == {"shadow/accuracy/mean/merged"}
    assert figures["shadow/accuracy/mean/merged"] == 0.5


def test_a_round_that_failed_has_numbers_too():
    failed = report(1, 0.5) | {"received": None, "merge": None, "admitted": {}, "seconds": {}}
    assert set(round_figures(failed)) == {
        *(f"silos/{what}" for what in ("asked", "admitted", "refused", "missing")), "bytes/up", "bytes/down",
    }  # fmt: skip


def test_a_finished_run_in_numbers():
    figures = final_figures(RESULT)
    assert figures["kept"] == 0.75 and figures["final/accuracy/silo/rocks"] == 0.5
    assert figures[f"final/accuracy/mean/{SHADOW}"] == 0.625 and figures["final/accuracy/worst/base"] == 0.125
    assert figures["total/bytes/up"] == 3000 and figures["total/seconds/rounds"] == 4.0


def test_tensorboard_reads_the_scores_by_round(events):
    scalars = [(each.step, each.value) for each in events.Scalars("received/accuracy/mean")]
    assert scalars == [(1, 0.5), (2, 0.75)]
    assert [(each.step, each.value) for each in events.Scalars("kept")] == [(2, 0.75)]
    expected = {*round_figures(report(1, 0.5)), *final_figures(RESULT)}
    assert set(events.Tags()["scalars"]) == expected


def test_tensorboard_reads_texts_and_hyperparameters(events):
    from tensorboard.plugins.hparams.plugin_data_pb2 import HParamsPluginData

    def text(tag: str) -> str:
        return events.Tensors(f"{tag}/text_summary")[0].tensor_proto.string_val[0].decode()

    assert 'name = "tiny"' in text("config") and "NaN" in text("refused/rocks")
    assert text("adapter") == RESULT["adapter"]
    content = events.SummaryMetadata("_hparams_/session_start_info").plugin_data.content
    found = HParamsPluginData.FromString(content).session_start_info.hparams
    assert found["run.rounds"].number_value == 2 and found["strategy.rule"].string_value == "fedavg()"
    assert events.SummaryMetadata("_hparams_/session_end_info")


def test_mlflow_reads_parameters_scores_and_tags(told):
    run = runs_of(told)[0]
    assert run.info.status == "FINISHED" and run.info.run_name == told.name
    assert run.data.params == {
        key: str(value) for key, value in config_of(told, run__trackers=BOTH).flat.items()
    }
    assert run.data.tags["fedmerge.adapter"] == RESULT["adapter"]
    assert run.data.tags["fedmerge.refused.rocks"] == "the delta holds NaN"
    assert run.data.metrics["kept"] == 0.75
    assert run.data.metrics["final/accuracy/mean/shadow/ties density:0.2 product rank:8"] == 0.625
    assert set(run.data.metrics) == {
        metric_name(name) for name in {*round_figures(report(1, 0.5)), *final_figures(RESULT)}
    }
    assert histories(told, "received/accuracy/mean") == [(1, 0.5), (2, 0.75)]
    assert histories(told, "bytes/up") == [(1, 1000), (2, 2000)]


def test_a_second_run_in_the_same_folder_is_another_run_of_mlflow(told, monkeypatch):
    monkeypatch.delenv("MLFLOW_TRACKING_URI", raising=False)
    with tracked(config_of(told, run__trackers="mlflow")) as observer:
        tell_all(observer)
    assert [run.data.metrics["kept"] for run in runs_of(told)] == [0.75, 0.75]


def test_nothing_lies_outside_of_the_trackers_folders_and_no_thread_is_left(told, monkeypatch):
    monkeypatch.delenv("MLFLOW_TRACKING_URI", raising=False)
    before = set(threading.enumerate())  # other tests of this process may have left some
    with tracked(config_of(told, run__trackers=BOTH)) as observer:
        tell_all(observer)
        assert set(threading.enumerate()) <= before
    assert set(threading.enumerate()) <= before
    assert {path.name for path in told.iterdir()} == {"tensorboard", "mlflow"}


@pytest.mark.parametrize(
    "name", ["final/a/../b", "//x", "silo/ward (b) #3", "a/./b", "x" * 400, "müller/äß", "(=)", "tail/@"]
)
def test_any_name_becomes_one_that_mlflow_takes(name):
    validation = pytest.importorskip("mlflow.utils.validation", reason="the test extra is not installed")
    validation._validate_metric_name(metric_name(name))
    validation._validate_tag_name(metric_name(name))
    assert 0 < len(metric_name(name)) <= 250


def test_a_run_with_trackers_is_the_same_run(tiny_flat, tmp_path):
    pytest.importorskip("tensorboard", reason="the test extra is not installed")
    from tensorboard.backend.event_processing.event_accumulator import EventAccumulator

    one, two = (
        read_config(
            tiny_flat(
                run__output=str(tmp_path / name), run__trackers=names, run__baselines="", engine__workers=2
            )
        )
        for name, names in (("one", ""), ("two", "tensorboard"))
    )
    assert one.digest == two.digest
    folders = [run_local(config) for config in (one, two)]
    adapters = {(folder / "adapter" / "adapter_model.safetensors").read_bytes() for folder in folders}
    assert len(adapters) == 1 and not (folders[0] / "tensorboard").exists()
    run_local(two)  # what the run before left is replaced, and not shown beside it
    events = EventAccumulator(str(folders[1] / "tensorboard")).Reload()
    result = json.loads((folders[1] / "result.json").read_text())
    scores = [each.value for each in events.Scalars("received/bits_per_byte/mean")]
    assert scores == pytest.approx([each["received"]["mean"] for each in result["rounds"]])
    (kept,) = events.Scalars("kept")
    assert kept.value == pytest.approx(result["candidates"][result["kept"]]["mean"])


@pytest.mark.slow
def test_flower_s_server_tells_trackers_too(tiny_flat, monkeypatch):
    pytest.importorskip("mlflow", reason="the test extra is not installed")
    monkeypatch.delenv("MLFLOW_TRACKING_URI", raising=False)
    folder = run_flower(read_config(tiny_flat(run__trackers=BOTH)))
    (run,) = runs_of(folder)
    result = json.loads((folder / "result.json").read_text())
    assert run.data.metrics["kept"] == pytest.approx(result["candidates"][result["kept"]]["mean"])
    assert list((folder / "tensorboard").iterdir())


def test_an_unknown_tracker_is_refused_with_the_nearest_name(tmp_path):
    with pytest.raises(
        ConfigError, match=r"run\.trackers: no tracker 'tensorbord'; did you mean 'tensorboard'"
    ):
        trackers(config_of(tmp_path, run__trackers="tensorbord"))


@pytest.mark.parametrize("name", ["tensorboard", "mlflow"])
@pytest.mark.parametrize("run", [run_local, run_flower])
def test_a_missing_package_is_refused_before_anything_is_done(tmp_path, monkeypatch, name, run):
    monkeypatch.setattr(
        needs, "find_spec", lambda package: None if package == name else util.find_spec(package)
    )
    wanted = rf"'{name}' needs .*; pip install 'fedmerge\[{name}\]'"
    config = config_of(tmp_path / "run", run__trackers=name, data__source="/nowhere")
    with pytest.raises(ConfigError, match=wanted):
        run(config)
    assert not (tmp_path / "run").exists()


def test_a_dry_run_refuses_what_a_run_would(tmp_path):
    from fedmerge.cli import plan

    with pytest.raises(ConfigError, match="no tracker 'none'"):
        plan.make(config_of(tmp_path / "run", run__trackers="none"))


class Wall(Silent):
    """A tracker of somebody's own, which breaks when a round is closed."""

    made: tuple = ()

    def __init__(self, config, folder):
        self.seen = []
        Wall.made += (self,)

    def run_started(self, plan):
        self.seen.append("run_started")

    def round_closed(self, report):
        self.seen.append("round_closed")
        raise OSError(errno.ENOSPC, "no space left on device")

    def finished(self, result):
        self.seen.append("finished")

    def close(self):
        self.seen.append("close")


@pytest.fixture
def wall(monkeypatch):
    """Tracker "wall", as an installed package would offer it."""
    monkeypatch.setattr(named, "entry_names", lambda group: ["wall"] if group == named.GROUP else [])
    monkeypatch.setattr(named, "load_entry", lambda group, name, key: {"wall": Wall}[name])
    monkeypatch.setattr(Wall, "made", ())
    return Wall


def test_a_tracker_of_another_package_and_its_failure(wall, tiny_flat, caplog):
    with caplog.at_level(logging.WARNING, named.logger.name):
        folder = run_local(read_config(tiny_flat(run__trackers="wall", run__baselines="")))
    (tracker,) = wall.made
    assert tracker.seen == ["run_started", "round_closed"]
    warnings = [each.message for each in caplog.records if each.name == named.logger.name]
    assert len(warnings) == 1 and "'wall'" in warnings[0] and "no space left" in warnings[0]
    assert len(json.loads((folder / "result.json").read_text())["rounds"]) == 2


def test_trackers_are_closed_when_the_run_fails(wall, tmp_path):
    def failing() -> None:
        with tracked(config_of(tmp_path, run__trackers="wall")) as observer:
            observer.run_started(PLAN)
            raise KeyboardInterrupt

    with pytest.raises(KeyboardInterrupt):
        failing()
    assert wall.made[0].seen == ["run_started", "close"]


def test_a_tracker_that_can_t_be_made_is_a_wrong_configuration(wall, tmp_path, monkeypatch):
    monkeypatch.setattr(named, "load_entry", lambda *_: lambda config: None)
    with pytest.raises(ConfigError, match="'wall' can't be used: TypeError"):
        trackers(config_of(tmp_path, run__trackers="wall"))


def test_ours_are_found_where_they_are_said_to_be():
    assert {name: entry.load() for name, entry in named.OURS.items()} == {
        "tensorboard": tensorboard.TensorBoard,
        "mlflow": mlflow.MLflow,
    }
    assert all(isinstance(entry, EntryPoint) and entry.group == named.GROUP for entry in named.OURS.values())


def test_a_server_that_is_away_costs_a_warning(tmp_path, monkeypatch, caplog):
    pytest.importorskip("mlflow", reason="the test extra is not installed")
    monkeypatch.setenv("MLFLOW_TRACKING_URI", "http://127.0.0.1:9")
    monkeypatch.setenv("MLFLOW_HTTP_REQUEST_MAX_RETRIES", "0")
    with (
        caplog.at_level(logging.WARNING, named.logger.name),
        tracked(config_of(tmp_path, run__trackers="mlflow")) as observer,
    ):
        tell_all(observer)
    assert len([each for each in caplog.records if each.name == named.logger.name]) == 1
    assert not (tmp_path / "mlflow").exists()


def test_a_run_that_failed_is_failed_in_mlflow(tmp_path, monkeypatch):
    pytest.importorskip("mlflow", reason="the test extra is not installed")
    ends = []

    class Run:
        def __init__(self, store, experiment, folder):
            self.store = store

        def parameters(self, values):
            pass

        tags = parameters

        def end(self, status):
            ends.append(status)

    monkeypatch.setattr(mlflow, "Run", Run)
    tracker = mlflow.MLflow(config_of(tmp_path), tmp_path)
    tracker.close()
    assert not ends, "it had not begun"
    tracker.run_started(PLAN)
    tracker.close()
    assert ends == ["FAILED"]
