"""Each in a process of its own: pytest has handlers everywhere, a ClientApp's process has none."""

from __future__ import annotations

import json
import os
import subprocess
import sys

from fedmerge import logs


def told(script: str, **environment: str) -> list[str]:
    """The lines that a script writes to stderr."""
    done = subprocess.run(
        [sys.executable, "-c", f"import logging\nfrom fedmerge import logs\n{script}"],
        env=os.environ | environment,
        capture_output=True,
        text=True,
        check=True,
        timeout=60,
    )
    return done.stderr.splitlines()


def test_an_event_is_one_line_with_time_party_run_and_round() -> None:
    (line,) = told(r"""
logs.configure("silo hospital-a")
logs.note(run="a1b2", round=3)
logging.getLogger("fedmerge.silo.worker").info("12 steps\nin 3 s")
logging.getLogger("fedmerge.silo.worker").debug("not this one")
""")
    moment, rest = line.split(" ", 1)
    assert len(moment) == len("2026-01-01T00:00:00.000Z") and moment.endswith("Z")
    assert rest == "INFO silo hospital-a run=a1b2 round=3 12 steps in 3 s"


def test_json_lines() -> None:
    script = """
logs.configure("server", run="a1b2")
logging.getLogger("fedmerge.server.books").warning("round %d closed", 4, extra={"round": 4})
try:
    raise ValueError("broken")
except ValueError:
    logging.getLogger("fedmerge").exception("failed")
"""
    first, second = (json.loads(line) for line in told(script, **{logs.FORMAT: "json"}))
    assert first.pop("time")
    assert first == {
        "level": "WARNING", "party": "server", "run": "a1b2", "round": 4,
        "logger": "fedmerge.server.books", "message": "round 4 closed",
    }  # fmt: skip
    assert second["round"] == 0 and "ValueError: broken" in second["traceback"]


def test_a_second_call_adds_no_handler_but_a_new_scene() -> None:
    (line,) = told(
        'logs.configure("silo a"); logs.configure("silo b"); logging.getLogger("fedmerge").info("-")'
    )
    assert line.endswith("INFO silo b -")


def test_a_program_with_handlers_of_its_own_keeps_them_and_flower_s_logger_is_left_alone() -> None:
    assert (
        told("""
own = logging.NullHandler()
logging.getLogger().addHandler(own)
logs.configure("silo a")
logs.note(round=3)
logging.getLogger("fedmerge").warning("not twice")
assert logging.getLogger("fedmerge").handlers == logging.getLogger("flwr").handlers == []
""")
        == []
    )
