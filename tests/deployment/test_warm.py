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
from pathlib import Path

import psutil

from fedmerge.deployment import warm_client, warm_superexec

LOADED = ("json.tool", "fedmerge.client_process")  # torch would take this test ten seconds

def work(command):  # in the place of Flower's client: what is there when it begins
    there = [name in sys.modules for name in ("json.tool", "left.behind")]
    sys.modules["left.behind"] = sys
    Path(command[1]).write_text(json.dumps([*there, os.getppid()]))

def ready(told):  # as ours, of fewer modules
    warm_client.LOADED = LOADED
    warm_client.ready(told)

def started(starter, n, name="flwr-clientapp"):
    process = starter([name, f"told{n}.json"])
    process.wait(30) if hasattr(process, "wait") else process.join(30)
    path = Path(f"told{n}.json")
    return json.loads(path.read_text()) if path.exists() else "cold"

def main():
    warm_superexec.LOADED, warm_superexec.serve, warm_superexec.ready = LOADED, work, ready
    site = Path("site.toml")
    warm_superexec.warm_up(site)
    starter = import_module(warm_superexec._EXECUTOR).subprocess.Popen
    told = {"first": started(starter, 1), "second": started(starter, 2)}
    told["other"] = started(starter, 3, "true")
    text = site.read_text()
    site.write_text("network = true\\n" + text)
    told["network"] = started(starter, 4)
    site.write_text(text)
    told["again"] = started(starter, 5)
    told["parent"] = starter.server
    os.kill(starter.server, 9)
    while psutil.Process(told["parent"]).status() != psutil.STATUS_ZOMBIE:
        time.sleep(0.05)
    told["killed"] = started(starter, 6)
    while not starter.server:
        time.sleep(0.05)
    told["later"] = started(starter, 7)
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
    cold = site.parent / "bin" / "flwr-clientapp"
    cold.parent.mkdir()
    cold.symlink_to("/bin/true")
    environment = os.environ | {"PATH": f"{cold.parent}:{os.environ['PATH']}"}
    command = [sys.executable, "script.py"]
    done = subprocess.run(
        command, cwd=site.parent, env=environment, capture_output=True, text=True, check=False, timeout=300
    )
    assert done.returncode == 0, done.stderr
    told = json.loads(done.stdout)
    assert told["first"] == [True, False, told["parent"]], "loaded before it began"
    assert told["second"] == told["again"] == told["first"], "and nothing is left of the one before"
    assert told["other"] == "cold", "another command is started as Flower starts it"
    assert told["network"] == "cold", "libraries were loaded with another word on the network"
    assert told["killed"] == "cold", "a message does not wait for what is loaded again"
    assert told["later"][:2] == [True, False] and told["later"][2] != told["parent"]


class Told:
    """The fork server's end of a pipe."""

    def send(self, value: tuple[int, str]) -> None:
        self.value = value


def test_what_is_not_loaded_or_has_opened_a_gpu_is_told(monkeypatch):
    told = Told()
    monkeypatch.setattr(warm_client, "holds_a_gpu", lambda: True)
    monkeypatch.setattr(warm_client, "LOADED", ("json",))
    warm_client.ready(told)
    assert told.value == (os.getppid(), "a GPU was opened")
    monkeypatch.setattr(warm_client, "LOADED", ("json", "no.such.module"))
    warm_client.ready(told)
    assert told.value[1] == "no.such.module could not be imported"


def test_a_site_whose_rows_can_not_be_looked_for_still_answers(site, monkeypatch, caplog):
    def refused(path):
        raise PermissionError(13, "Permission denied", "/srv")

    monkeypatch.setattr(warm_superexec, "read_site", refused)
    warm_superexec.warm_up(site)
    assert "Permission denied" in caplog.text


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


@pytest.mark.parametrize("upgraded", [True, False])
def test_after_an_upgrade_the_command_itself_is_run(monkeypatch, upgraded):
    ran: list[tuple[str, object]] = []
    monkeypatch.setattr(warm_client.os, "execvp", lambda name, command: ran.append((name, command)))
    monkeypatch.setattr(warm_client, "main", lambda command: ran.append(("fork", command)))
    if upgraded:
        monkeypatch.setattr(warm_client, "installed", lambda names: dict.fromkeys(names, "2"))
    command = ["flwr-clientapp", "--token", "t"]
    with pytest.raises(SystemExit):
        warm_client.serve(command)
    assert ran[0] == ("flwr-clientapp" if upgraded else "fork", command)


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
