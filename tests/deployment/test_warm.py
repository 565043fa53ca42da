"""A site's SuperExec forks its ClientApps from a process that has loaded what they take."""

from __future__ import annotations

import json
import os
import subprocess
import sys
from importlib import import_module
from importlib.util import find_spec
from pathlib import Path

import pytest

from fedmerge.deployment import warm_client, warm_superexec
from fedmerge.deployment.warm_client import holds_a_gpu

SCRIPT = """
import json, os, sys, time
from importlib import import_module
from importlib.util import find_spec
from pathlib import Path

import psutil

from fedmerge.deployment import warm_superexec

def work(command):  # in the place of Flower's client: what is there when it begins
    there = [name in sys.modules for name in ("json.tool", "left.behind")]
    sys.modules["left.behind"] = sys
    Path(command[1]).write_text(json.dumps([*there, os.getppid()]))

def started(starter, n, name="flwr-clientapp"):
    process = starter([name, f"told{n}.json"])
    process.wait(30) if hasattr(process, "wait") else process.join(30)
    path = Path(f"told{n}.json")
    return json.loads(path.read_text()) if path.exists() else "cold"

def main():
    warm_superexec.LOADED = ("json.tool",)  # torch would take this test ten seconds
    warm_superexec.serve = work
    warm_superexec.warm_up(Path("site.toml"))
    executor = import_module(warm_superexec._EXECUTOR)
    starter = executor.subprocess.Popen
    told = {"first": started(starter, 1), "second": started(starter, 2)}
    told["other"] = started(starter, 3, sys.argv[1])
    [server] = [p for p in psutil.Process().children() if "forkserver" in " ".join(p.cmdline())]
    told["parent"] = server.pid
    server.kill()
    while server.status() != psutil.STATUS_ZOMBIE:
        time.sleep(0.05)
    told["killed"] = started(starter, 4)
    print(json.dumps(told))

if __name__ == "__main__":
    main()
"""


@pytest.fixture
def site(tmp_path: Path) -> Path:
    (tmp_path / "rows.jsonl").write_text('{"text": "a"}\n')
    path = tmp_path / "site.toml"
    path.write_text(f'silo = "a"\ndata = "{tmp_path / "rows.jsonl"}"\n')
    return path


def test_each_message_is_a_fork_that_begins_anew(site):
    (site.parent / "script.py").write_text(SCRIPT)
    done = subprocess.run(
        [sys.executable, "script.py", "true"], cwd=site.parent, capture_output=True, text=True, check=False
    )
    assert done.returncode == 0, done.stderr
    told = json.loads(done.stdout)
    assert told["first"] == [True, False, told["parent"]], "loaded before it began"
    assert told["second"] == told["first"], "and nothing is left of the one before"
    assert told["other"] == "cold", "another command is started as Flower starts it"
    assert told["killed"][:2] == [True, False] and told["killed"][2] != told["parent"], (
        "the fork server is started again"
    )


@pytest.mark.parametrize("text", ["preload = false\n", "prelaod = true\n"])
def test_nothing_is_loaded_where_the_site_does_not_want_it_or_its_file_is_wrong(site, text, caplog):
    site.write_text(text + site.read_text())
    warm_superexec.warm_up(site)
    assert import_module(warm_superexec._EXECUTOR).subprocess is subprocess
    assert ("unknown key 'prelaod'" in caplog.text) == ("prelaod" in text)


def test_flower_starts_tasks_where_we_put_the_fork(monkeypatch):
    """The contract with Flower: a ClientApp is started by this name, with its command alone."""
    from flwr.supercore.constant import TaskType
    from flwr.supercore.superexec.executor import ExecutionSpec, subprocess_executor

    started: list[tuple[list[str], dict[str, object]]] = []
    monkeypatch.setattr(
        subprocess_executor.subprocess, "Popen", lambda command, **options: started.append((command, options))
    )
    spec = ExecutionSpec(
        task_type=TaskType.CLIENT_APP, runtime_api_address="127.0.0.1:1", token="t", insecure=False,
        root_certificates_path="ca.crt", runtime_dependency_install=False, parent_pid=os.getpid(),
        suppress_output=False, task_id=1, fab_hash=None,
    )  # fmt: skip
    subprocess_executor.SubprocessExecutor().launch(spec)
    [(command, options)] = started
    assert command[0] == "flwr-clientapp" and options == {}
    assert subprocess_executor.__name__ == warm_superexec._EXECUTOR


@pytest.mark.parametrize("changed", ["gpu", "version", "nothing"])
def test_where_a_fork_would_not_do_the_command_itself_is_run(monkeypatch, changed):
    """A process that opened a GPU, or whose packages were upgraded since they were loaded."""
    ran: list[tuple[str, object]] = []
    monkeypatch.setattr(warm_client.os, "execvp", lambda name, command: ran.append((name, command)))
    monkeypatch.setattr(warm_client, "main", lambda command: ran.append(("fork", command)))
    monkeypatch.setattr(warm_client, "holds_a_gpu", lambda: changed == "gpu")
    if changed == "version":
        monkeypatch.setattr(warm_client, "installed", lambda names: dict.fromkeys(names, "2"))
    command = ["flwr-clientapp", "--token", "t"]
    with pytest.raises(SystemExit):
        warm_client.serve(command)
    assert ran[0] == ("fork" if changed == "nothing" else "flwr-clientapp", command)


def test_what_is_preloaded_can_be_loaded():
    """Python's fork server says nothing of a module that it can't import."""
    assert all(find_spec(name) for name in warm_client.LOADED)
    assert warm_client.__name__ in warm_client.LOADED


def test_a_gpu_that_was_opened_is_seen(tmp_path):
    (tmp_path / "0").symlink_to("/dev/null")
    (tmp_path / "1").symlink_to("socket:[1]")
    assert not holds_a_gpu(tmp_path) and not holds_a_gpu(tmp_path / "nowhere")
    (tmp_path / "2").symlink_to("/dev/nvidiactl")
    assert holds_a_gpu(tmp_path)


def test_what_is_no_superexec_is_not_started(capsys):
    assert warm_superexec.main(["site.toml", "flower-supernode"]) == 2
    assert "expected a site.toml, flower-superexec" in capsys.readouterr().err
