"""What a watch serves, asked over loopback as Prometheus and a load balancer would."""

from __future__ import annotations

import http.client
import json
import socket
import time
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path

import pytest
from prometheus_client.parser import text_string_to_metric_families

from fedmerge.deployment.figures import Figures, Following, told
from fedmerge.deployment.health import Health, Probe, judge
from fedmerge.deployment.metrics import registry
from fedmerge.deployment.serving import serving
from fedmerge.deployment.watching.view import State, View
from fedmerge.errors import ConfigError
from fedmerge.server.folder import RunFolder
from fedmerge.server.guard import Refusal
from fedmerge.server.refusals import KINDS
from fedmerge.server.report import RoundReport
from fedmerge.server.scores import Summary

NOW = 10_000.0
PLAN = {"rounds": 3, "silos": ["a", "b", "c"]}


def report(number: int, **changes: object) -> RoundReport:
    """A round of three silos: one admitted, one refused, one missing."""
    made = RoundReport(number, ("a", "b", "c"), missing=["c"], bytes_up=100, bytes_down=300)
    made.admitted = {"a": {"examples": 1, "weight": 1.0, "norm": 1.0, "metrics": {}}}
    made.refuse([Refusal(number, "b", "it has no metric 'num-examples'", "reply/weight")])
    made.seconds = {"wait": 1.0, "train": 2.0, "merge": 0.5, "write": 0.25}
    made.received = Summary("accuracy", {"a": 0.5}, 0.5 + number / 10, 0.5, 0.5)
    for key, value in changes.items():
        setattr(made, key, value)
    return made


@pytest.fixture
def folder(tmp_path: Path) -> Path:
    """What a run of three rounds leaves that was lost in the second, and went on: the third is open."""
    path = tmp_path / "run"
    with RunFolder(path, {"run.seed": 0}) as run:
        run.start({})
        run.run_started(PLAN)
        for number in (1, 2):
            run.round_started(number, ["a", "b", "c"])
            run.round_closed(report(number).to_dict())
        run.run_started(PLAN)
        run.round_closed(report(2).to_dict())  # told once more by the attempt that went on
        run.round_started(3, ["a", "b"])
    with (path / "events.jsonl").open("a") as file:
        file.write('{"event": "round_cl\nnot JSON\n{"event": "unheard of", "time": 1}\n{"event": "half a li')
    return path


class Page:
    """An answer of the server."""

    def __init__(self, answer: http.client.HTTPResponse) -> None:
        self.status, self.kind, self.body = (
            answer.status,
            answer.getheader("Content-Type"),
            answer.read().decode(),
        )

    @property
    def samples(self) -> dict[tuple[str, ...], float]:
        """Name and labels' values -> value."""
        families = text_string_to_metric_families(self.body)
        return {
            (sample.name, *sample.labels.values()): sample.value
            for family in families
            for sample in family.samples
        }


class Site:
    """A client of the address that is served."""

    def __init__(self, address: str) -> None:
        self.address = address

    def ask(self, path: str, method: str = "GET") -> Page:
        connection = http.client.HTTPConnection(self.address, timeout=10)
        connection.request(method, path)
        try:
            return Page(connection.getresponse())
        finally:
            connection.close()


@contextmanager
def site(view: View, silent: str = "", health: Health | None = None) -> Iterator[Site]:
    well = health or judge(view, 100.0, silent, NOW)
    with serving("127.0.0.1:0", registry(lambda: view, lambda: silent), lambda: well) as address:
        yield Site(address)


def test_metrics_of_a_run_that_went_on(folder):
    figures = Following(folder).read()
    view = View(State.RUNNING, run="7", resubmissions=1, since=NOW, figures=figures)
    with site(view) as served:
        page = served.ask("/metrics")
    found = page.samples
    assert page.status == 200
    assert found["fedmerge_round",] == 3
    assert found["fedmerge_rounds_planned",] == 3
    assert found["fedmerge_rounds_closed_total",] == 2
    assert found["fedmerge_silos_asked",] == 2
    assert (found["fedmerge_silos_admitted",], found["fedmerge_silos_missing",]) == (1, 1)
    assert found["fedmerge_refusals_total", "weight"] == 2
    assert {key[1] for key in found if key[0] == "fedmerge_refusals_total"} == set(KINDS)
    assert found["fedmerge_traffic_bytes_total", "up"] == 200
    assert found["fedmerge_traffic_bytes_total", "down"] == 600
    phases = ("wait", "train", "merge", "write")
    assert [found["fedmerge_phase_seconds_total", phase] for phase in phases] == [2.0, 4.0, 1.0, 0.5]
    assert found["fedmerge_resubmissions_total",] == 1
    assert found["fedmerge_merged_score", "accuracy"] == 0.7
    assert 0 <= found["fedmerge_round_closed_age_seconds",] < 60
    assert found["fedmerge_superlink_up",] == 1
    assert found["fedmerge_run_state", "running"] == 1
    assert sum(value for key, value in found.items() if key[0] == "fedmerge_run_state") == 1
    assert any(key[0] == "fedmerge_build_info" for key in found)


def test_metrics_before_anything_happened():
    with site(View(), silent="it is away") as served:
        found = served.ask("/metrics").samples
    assert found["fedmerge_superlink_up",] == 0
    assert found["fedmerge_rounds_closed_total",] == 0
    assert ("fedmerge_round_closed_age_seconds",) not in found
    assert not any(key[0] == "fedmerge_merged_score" for key in found)


def test_every_metric_is_documented(folder, project_root):
    view = View(figures=Following(folder).read())
    with site(view) as served:
        families = list(text_string_to_metric_families(served.ask("/metrics").body))
    text = (project_root / "docs" / "deployment.md").read_text(encoding="utf-8")
    for family in families:
        shown = f"{family.name}_total" if family.type == "counter" else family.name
        assert f"`{shown}" in text, shown
        assert family.documentation


def test_figures_begin_anew_with_a_run_that_does(folder):
    following = Following(folder)
    assert following.read().closed == 2
    with RunFolder(folder, {"run.seed": 0}) as run:
        run.start({})
        run.run_started(PLAN)
        assert following.read() == Figures(planned=3, started=following.figures.started)


def test_a_failed_round_is_not_a_closed_one():
    failed = report(1, failed="round 1: 1 of 3 silos gave a usable reply", received=None).to_dict()
    figures = told(Figures(), {"event": "round_closed", "time": 5.0, "report": failed})
    assert (figures.closed, figures.closed_at) == (0, 0.0)
    assert figures.total(lambda each: each.refused) == {"weight": 1}


def test_the_last_score_is_that_of_the_result():
    result = {"metric": "loss", "candidates": {"merged": {"mean": 0.25}}}
    figures = told(Figures(), {"event": "finished", "time": 5.0, "result": result})
    assert (figures.finished, figures.metric, figures.score) == (True, "loss", 0.25)


def test_only_get_and_only_two_pages():
    with site(View(since=NOW)) as served:
        assert [served.ask(path).status for path in ("/metrics", "/health", "/health?verbose")] == [200] * 3
        assert [served.ask(path).status for path in ("/", "/metrics/", "/../etc")] == [404] * 3
        methods = ("POST", "PUT", "DELETE", "HEAD", "OPTIONS", "PATCH", "TRACE")
        assert {served.ask("/metrics", method).status for method in methods} == {405}


def test_a_client_that_says_nothing_does_not_hold_up_the_others():
    with site(View(since=NOW)) as served:
        host, _, port = served.address.partition(":")
        with socket.create_connection((host, int(port))):
            assert served.ask("/health").status == 200


def test_an_address_that_is_taken_or_none():
    with socket.create_server(("127.0.0.1", 0)) as taken:
        address = f"127.0.0.1:{taken.getsockname()[1]}"
        for wrong in (address, "9464", "127.0.0.1:", "127.0.0.1:70000"):
            with (
                pytest.raises(ConfigError, match="--metrics"),
                serving(wrong, registry(View, str), lambda: judge(View(), 1.0, "", 0.0)),
            ):
                pass
    with serving("", registry(View, str), lambda: judge(View(), 1.0, "", 0.0)) as address:
        assert address == ""


CLOSED = Figures(planned=3, round=2, started=NOW - 5000, closed_at=NOW - 50)
QUIET = Figures(planned=3, round=2, started=NOW - 5000, closed_at=NOW - 101)


@pytest.mark.parametrize(
    ("view", "silent", "status", "reason"),
    [
        (View(State.RUNNING, since=NOW - 6000, figures=CLOSED), "", 200, ""),
        (View(State.RUNNING, since=NOW - 50), "", 200, ""),
        (View(State.RUNNING, since=NOW - 50, figures=QUIET), "", 200, ""),
        (View(State.LOST, "No heartbeat", since=NOW - 6000, figures=CLOSED), "", 200, ""),
        (View(State.COMPLETED, since=NOW - 6000, figures=QUIET), "", 200, ""),
        (
            View(State.RUNNING, since=NOW - 6000, figures=QUIET),
            "",
            503,
            "no round was closed for 101 seconds; 100",
        ),
        (View(State.WAITING, since=NOW - 101), "", 503, "no round was closed for 101 seconds; 100"),
        (View(State.LOST, since=NOW - 6000, figures=QUIET), "", 503, "no round was closed"),
        (View(State.FAILED, "run 7 is finished:failed", since=NOW), "", 503, "run 7 is finished:failed"),
        (View(State.RUNNING, since=NOW, figures=CLOSED), "it is away", 503, "it is away"),
    ],
)
def test_health(view, silent, status, reason):
    with site(view, silent) as served:
        page = served.ask("/health")
    answer = json.loads(page.body)
    assert (page.status, answer["healthy"]) == (status, status == 200)
    assert page.kind == "application/json"
    assert answer["state"] == view.state
    assert len(answer["reasons"]) == (status != 200)
    assert reason in "".join(answer["reasons"])


def test_the_superlink_is_asked_seldom():
    clock = [0.0]
    view = View(since=time.time())
    with site(view) as served:
        probe = Probe(f"http://{served.address}/health", None, lambda: clock[0])
        assert probe() == ""
    assert probe() == ""  # of two seconds ago
    clock[0] = 3.0
    assert "does not answer" in probe()


def test_a_superlink_that_answers_with_an_error_is_none():
    with site(View(State.FAILED, "over", since=NOW)) as served:
        assert "answers 503" in Probe(f"http://{served.address}/health", None)()


def test_every_kind_of_refusal_is_documented(project_root):
    text = (project_root / "docs" / "deployment.md").read_text(encoding="utf-8")
    row = next(line for line in text.splitlines() if "`fedmerge_refusals_total" in line)
    assert all(kind in row for kind in KINDS)
