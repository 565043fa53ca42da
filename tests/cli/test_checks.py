import shutil
import socket
from collections import namedtuple
from importlib import metadata

import pytest

from fedmerge.cli import checks


@pytest.fixture
def closed_port() -> int:
    with socket.create_server(("127.0.0.1", 0)) as server:
        return server.getsockname()[1]


def test_packages_that_are_there_and_that_are_not() -> None:
    assert checks.package("numpy").state in (checks.OK, checks.NOTE)
    missing = checks.package("no-such-package-of-ours")
    assert missing.state == checks.BROKEN
    assert missing.advice == "pip install 'no-such-package-of-ours'"


def test_a_package_that_does_not_import_is_broken(monkeypatch) -> None:
    def fail(name: str) -> None:
        raise RuntimeError("undefined symbol")

    monkeypatch.setattr(checks.importlib, "import_module", fail)
    check = checks.package("numpy")
    assert check.state == checks.BROKEN
    assert "undefined symbol" in check.found


def test_a_version_outside_of_the_tested_range_is_a_note(monkeypatch) -> None:
    monkeypatch.setattr(metadata, "requires", lambda name: ["numpy>=999", "rich; extra == 'x'"])
    check = checks.package("numpy")
    assert check.state == checks.NOTE
    assert check.advice == "fedmerge is tested with numpy>=999"


def test_free_ports(monkeypatch, closed_port: int) -> None:
    monkeypatch.setenv("FLWR_LOCAL_CONTROL_API_PORT", str(closed_port))
    monkeypatch.setenv("FLWR_LOCAL_SUPERLINK_HTTP_API_PORT", str(closed_port))
    assert [check.state for check in checks.superlink()] == [checks.OK, checks.OK]


@pytest.mark.parametrize("port", ["x", "0", "70000"])
def test_a_port_that_is_none(monkeypatch, port: str) -> None:
    monkeypatch.setenv("FLWR_LOCAL_CONTROL_API_PORT", port)
    assert next(checks.superlink()).state == checks.NOTE


@pytest.mark.parametrize(("processes", "said"), [([4711], "kill 4711"), ([], "move `flwr run` away")])
def test_a_taken_port_says_what_to_do(monkeypatch, processes: list[int], said: str) -> None:
    monkeypatch.setattr(checks, "superlink_processes", lambda: processes)
    with socket.create_server(("127.0.0.1", 0)) as server:
        monkeypatch.setenv("FLWR_LOCAL_CONTROL_API_PORT", str(server.getsockname()[1]))
        check = next(checks.superlink())
    assert check.state == checks.NOTE
    assert said in check.advice


def test_hub_offline_by_setting(monkeypatch) -> None:
    monkeypatch.setenv("HF_HUB_OFFLINE", "1")
    assert checks.hub().found == "offline by HF_HUB_OFFLINE"


@pytest.mark.parametrize("address", ["file:///etc/passwd", "http://127.0.0.1:9"])
def test_hub_out_of_reach_is_a_note(monkeypatch, address: str) -> None:
    for variable in ("HF_HUB_OFFLINE", "TRANSFORMERS_OFFLINE"):
        monkeypatch.delenv(variable, raising=False)
    monkeypatch.setenv("HF_ENDPOINT", address)
    monkeypatch.setenv("NO_PROXY", "127.0.0.1")
    assert checks.hub().state == checks.NOTE


def test_disk(monkeypatch, tmp_path) -> None:
    usage = namedtuple("usage", "total used free")
    assert checks.disk(tmp_path / "not" / "yet").state in (checks.OK, checks.NOTE)
    monkeypatch.setattr(shutil, "disk_usage", lambda path: usage(1, 1, 1000))
    assert checks.disk(tmp_path).state == checks.BROKEN


def test_a_cache_that_can_not_be_written_is_broken(monkeypatch, tmp_path) -> None:
    monkeypatch.setenv("HF_HOME", str(tmp_path / "new"))
    assert checks.cache().state == checks.OK
    monkeypatch.setattr(checks.os, "access", lambda path, mode: False)
    assert checks.cache().state == checks.BROKEN


def test_processor_and_gpu_never_raise() -> None:
    assert checks.processor().state == checks.OK
    assert checks.gpu().state in (checks.OK, checks.NOTE)
    assert checks.memory_bytes() > 0
