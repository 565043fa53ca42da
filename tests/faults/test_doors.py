"""Fault 44: control and runtime calls from a site's network; refused as shipped, not by default."""

from __future__ import annotations

from pathlib import Path

import pytest

from fedmerge.deployment.doctor.asking import HungUp, Place, Unreachable, ask
from tests.deployment.live import NGINX, federation
from tests.deployment.stock import superlink

SECRET_CALLS = (
    "/v1/control/start-run",
    "/v1/control/list-runs",
    "/v1/control/list-nodes",
    "/v1/control/register-node",
    "/v1/runtime/acquire-task",
    "/v1/runtime/pull-task-input",
    "/v1/runtime/get-nodes",
    "/v1/fleet/register-node",
    "/v1/fleet/unregister-node",
    "/v1/fleet/../control/list-runs",
    "/v1/fleet/%2e%2e/control/list-runs",
    "/v1/fleet/pull-messages/../../control/list-runs",
    "//v1/control/list-runs",
    "/V1/control/list-runs",
    "/openapi.json",
    "/docs",
    "/health",
)
REFUSALS = {400, 403, 404}


def let_in(place: Place) -> dict[str, int]:
    """The calls, none of them a site's business, that the SuperLink answered itself."""
    answers = {}
    for path in SECRET_CALLS:
        try:
            answer = ask(place, path, method="POST")
        except HungUp:
            continue
        if answer.status not in REFUSALS or answer.headers.get("server") == "uvicorn":
            answers[path] = answer.status
    return answers


@pytest.mark.slow
@pytest.mark.fault(44)
@pytest.mark.skipif(NGINX is None, reason="nginx is not installed")
def test_a_site_reaches_its_own_calls_and_no_others(tmp_path: Path) -> None:
    with federation(tmp_path, ("hospital-a",), proxies=True, start=False) as live:
        live.start("superlink")
        live.wait_for(live.healthy, "the SuperLink answers")
        live.start("server-proxy")
        site, port = live.site("hospital-a"), live.made.server.port
        place = Place("localhost", port, live.server / "ca.crt", (site / "client.pem", site / "client.key"))

        def fleet(there: Place) -> int:
            try:
                return ask(there, "/v1/fleet/pull-messages", method="POST").status
            except (HungUp, Unreachable):
                return 0

        live.wait_for(lambda: fleet(place), "the proxy answers")
        assert fleet(place) == 401  # Flower's own answer to a call that no key signed
        assert let_in(place) == {}
        assert let_in(place.without_identity()) == {}
        assert let_in(place.in_plain_text()) == {}
        assert fleet(place.without_identity()) in REFUSALS | {0}
        assert fleet(place.in_plain_text()) in REFUSALS | {0}


@pytest.mark.fault(44)
def test_the_same_calls_on_flowers_defaults(tmp_path: Path) -> None:
    with superlink(tmp_path, "--insecure") as port:
        answers = let_in(Place("127.0.0.1", port, tls=False))
    open_calls = {"/v1/control/list-runs", "/v1/control/list-nodes", "/v1/runtime/acquire-task"}
    assert {path for path, status in answers.items() if status == 200} >= open_calls
