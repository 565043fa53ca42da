"""Flower's own SuperLink, as its guides start it, on a free port of the loopback interface."""

from __future__ import annotations

import os
import socket
import subprocess
import sys
import time
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path

BIN = Path(sys.executable).parent
_SECONDS = 90.0


@contextmanager
def superlink(folder: Path, *flags: str) -> Iterator[int]:
    """Run a `flower-superlink` with these flags and a database in `folder`; yields its port."""
    port = free_port()
    command = [BIN / "flower-superlink", "--host", "127.0.0.1", "--port", str(port), *flags]
    quiet = {
        "FLWR_TELEMETRY_ENABLED": "0",
        "FLWR_DISABLE_UPDATE_CHECK": "1",
        "FLWR_HOME": str(folder / "flwr"),
        "PATH": f"{BIN}{os.pathsep}{os.environ['PATH']}",
    }
    with (folder / "superlink.log").open("wb") as log:
        process = subprocess.Popen(
            [*command, "--database", str(folder / "state.db")],
            cwd=folder, env=os.environ | quiet, stdout=log, stderr=subprocess.STDOUT,
        )  # fmt: skip
        try:
            _wait(process, port, folder)
            yield port
        finally:
            process.terminate()
            try:
                process.wait(timeout=20)
            except subprocess.TimeoutExpired:
                process.kill()
                process.wait()


def free_port() -> int:
    with socket.socket() as probe:
        probe.bind(("127.0.0.1", 0))
        return int(probe.getsockname()[1])


def _wait(process: subprocess.Popen[bytes], port: int, folder: Path) -> None:
    end = time.monotonic() + _SECONDS
    while time.monotonic() < end:
        if process.poll() is not None:
            break
        with socket.socket() as probe:
            if probe.connect_ex(("127.0.0.1", port)) == 0:
                return
        time.sleep(0.1)
    raise AssertionError((folder / "superlink.log").read_text(encoding="utf-8", errors="replace"))
