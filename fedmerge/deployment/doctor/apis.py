"""Flower's three APIs: which of them answer to whom.

What is asked takes nothing. A GET of a path that only knows POST is answered by the API itself (405) and
reaches no handler; a task is asked for with an empty list of the kinds that would be taken, so that none is
handed out.
"""

from __future__ import annotations

from dataclasses import replace

from fedmerge.deployment.doctor.asking import Answer, HungUp, Place, Unreachable, ask
from fedmerge.deployment.doctor.finding import CLOSED, NOTE, OPEN, UNKNOWN, Finding

CONTROL, RUNTIME, TASKS, FLEET = (
    "/v1/control/list-runs",
    "/v1/runtime/get-nodes",
    "/v1/runtime/acquire-task",
    "/v1/fleet/pull-messages",
)
REGISTER = "/v1/fleet/register-node"
UNSIGNED = 401
"""What Flower's Fleet API answers to whoever does not sign; nothing is done then."""

REFUSED = {400, 401, 403, 404, 444, 495, 496}
"""Statuses of a proxy that lets nobody through (495 and 496: nginx, about certificates), and of a login."""

_PROXY = "sites reach /v1/fleet/ only, through the proxy (nginx.conf), and the SuperLink listens on 127.0.0.1"


def control(place: Place, seen_from: str) -> Finding:
    """Whether the Control API answers: in the open build it asks nobody who they are."""
    return _reached(
        place,
        CONTROL,
        f"control API from {seen_from}",
        "whoever asks from there can start runs on every site",
    )


def local_control(place: Place) -> Finding:
    """What the Control API says on the server's own machine, where `flwr` needs it."""
    finding = control(place, "this machine")
    if finding.state != OPEN:
        return finding
    told = "405: Flower has no login, so every user of this machine can start and stop runs"
    return replace(finding, state=NOTE, answered=told, close="give nobody else an account on this machine")


def runtime(place: Place, seen_from: str) -> Finding:
    """Whether the Runtime API, which is for the server's own processes, answers."""
    return _reached(
        place,
        RUNTIME,
        f"runtime API from {seen_from}",
        "it is for the processes of the server itself",
    )


def described(place: Place, seen_from: str) -> Finding:
    """Whether the SuperLink says from there what it is, and of which version."""
    return _reached(
        place, "/openapi.json", f"API description from {seen_from}", "it tells the version of Flower"
    )


def isolation(place: Place, seen_from: str, close: str = "") -> Finding:
    """Whether a task and its token would be handed to somebody who knows no secret.

    Flower's default, `--isolation subprocess`, does; `--isolation process` with a secret answers 401.
    """
    door = f"tasks from {seen_from}"
    asked = f"POST {place}{TASKS} without a secret, naming no kind of task"
    try:
        answer = ask(place, TASKS, method="POST")
    except Unreachable as error:
        return _unreachable(door, asked, error)
    except HungUp as error:
        return Finding(door, CLOSED, asked, f"hung up: {error}")
    if answer.status == 200:
        told = "200: a task's token would be handed out, and with it the run's data"
        advice = close or "--isolation process with --superexec-auth-secret-file"
        return Finding(door, OPEN, asked, told, advice)
    return _closed_or_unknown(door, asked, answer)


def fleet(place: Place) -> Finding:
    """Whether the Fleet API can be reached with the site's certificate: the one door that must open."""
    door, asked = "fleet API with a site's certificate", f"POST {place}{FLEET}, empty and unsigned"
    try:
        answer = ask(place, FLEET, method="POST")
    except (Unreachable, HungUp) as error:
        return Finding(door, UNKNOWN, asked, str(error), "no SuperNode gets through; is the server running?")
    if answer.status == UNSIGNED:
        return Finding(door, CLOSED, asked, "401: it is there, for those who sign with a registered key")
    close = "no SuperNode gets through: see the proxy's error log"
    return Finding(door, UNKNOWN, asked, str(answer.status), close)


def registration(place: Place) -> Finding:
    """Whether a site could register a node; whether Flower takes it, only the SuperLink's flags say."""
    door, asked = "registration of nodes", f"POST {place}{REGISTER}, empty and unsigned"
    try:
        answer = ask(place, REGISTER, method="POST")
    except Unreachable as error:
        return _unreachable(door, asked, error)
    except HungUp as error:
        return Finding(door, CLOSED, asked, f"hung up: {error}")
    if answer.status == UNSIGNED:
        told = "401: with any signature it would reach the SuperLink; does that have --enable-supernode-auth?"
        return Finding(door, UNKNOWN, asked, told, "let the proxy refuse it: operators register nodes")
    return _closed_or_unknown(door, asked, answer)


def _reached(place: Place, path: str, door: str, harm: str) -> Finding:
    asked = f"GET {place}{path}"
    try:
        answer = ask(place, path)
    except Unreachable as error:
        return _unreachable(door, asked, error)
    except HungUp as error:
        return Finding(door, CLOSED, asked, f"hung up: {error}")
    if answer.status in (200, 405):
        return Finding(door, OPEN, asked, f"{answer.status}: {harm}", _PROXY)
    return _closed_or_unknown(door, asked, answer)


def _closed_or_unknown(door: str, asked: str, answer: Answer) -> Finding:
    state = CLOSED if answer.status in REFUSED else UNKNOWN
    return Finding(door, state, asked, str(answer.status))


def _unreachable(door: str, asked: str, error: Unreachable) -> Finding:
    return Finding(door, UNKNOWN, asked, str(error), "ask again while the server is running")


def shut(place: Place) -> Finding:
    """Whether a port at which a SuperLink may listen is closed to this machine: silence is right there."""
    seen_from = f"port {place.port}, past the proxy"
    try:
        ask(place, CONTROL)
    except Unreachable as error:
        return Finding(f"control API from {seen_from}", CLOSED, f"GET {place}{CONTROL}", str(error))
    except HungUp:
        pass  # said by what follows
    return control(place, seen_from)
