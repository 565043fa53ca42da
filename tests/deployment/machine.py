"""Machines with a systemd of their own, on one network: where a party's README is worked off, as root.

    with machine(tmp_path, "hospital-a") as there:
        there.install(out / "silos" / "hospital-a", "/etc/fedmerge")
        there.run("systemctl enable --now fedmerge-supernode")
        there.show("fedmerge-supernode", "ActiveState")

Each is a container of `systemd-nspawn`. Its files are this machine's with a layer of its own above them; its
network is this machine's, so that parties on different ports meet on the loopback interface.
"""

from __future__ import annotations

import os
import re
import shutil
import subprocess
import sys
import time
from collections.abc import Callable, Iterator
from contextlib import contextmanager, suppress
from pathlib import Path

import psutil

NSPAWN = shutil.which("systemd-nspawn")
PROJECT = Path(__file__).parents[2]
DONE = ("python3 -m venv", "apt-get")
"""Lines of a README that are done here already: this environment and this machine's nginx are taken."""
OWN = ("etc/fedmerge", "var/lib/fedmerge", "var/log/fedmerge")
"""Where a party's files lie."""


def missing() -> str:
    """Why there can be no such machine here; "" where there can."""
    if NSPAWN is None:
        return "systemd-nspawn is not installed (Debian: apt-get install systemd-container)"
    if os.geteuid() != 0:
        return "only root can start systemd-nspawn"
    if "overlay" not in Path("/proc/filesystems").read_text():
        return "the kernel has no overlay file system"
    return ""


class Machine:
    """A container that runs systemd.

    Args:
        root: where its files are mounted.
        process: systemd-nspawn.
        log: what its console has shown.
    """

    def __init__(self, root: Path, process: subprocess.Popen[bytes], log: Path) -> None:
        """Wait until its systemd answers."""
        self.root, self.process, self.log = root, process, log
        self.init = self._until(self._first_process, "systemd started")
        self._until(self._answers, "systemd answers")

    def run(self, command: str, seconds: float = 300.0) -> str:
        """Run a shell command there as root; gives what it printed.

        Raises:
            AssertionError: it failed, or took too long.
        """
        done = subprocess.run(
            ["nsenter", "--target", str(self.init), "--mount", "--uts", "--ipc", "--pid", "--",
             "/bin/sh", "-ec", command],
            env={"PATH": "/usr/sbin:/usr/bin:/sbin:/bin"}, cwd="/", stdin=subprocess.DEVNULL,
            capture_output=True, text=True, check=False, timeout=seconds,
        )  # fmt: skip
        assert done.returncode == 0, f"{command}: {done.stdout}\n{done.stderr}"
        return done.stdout

    def install(self, folder: Path, place: str) -> None:
        """Put a party's folder in its place, as it was carried there: owned by root, with its modes."""
        shutil.copytree(folder, self.file(place))

    def file(self, path: str) -> Path:
        """Where one of its files or folders can be reached from here."""
        return self.root / path.lstrip("/")

    def show(self, unit: str, what: str) -> str:
        """A property of a unit, "MainPID" say."""
        return self.run(f"systemctl show --value --property {what} {unit}").strip()

    def journal(self, unit: str) -> str:
        """What a unit has logged."""
        return self.run(f"journalctl --no-pager --output cat --unit {unit}")

    def processes(self, user: int) -> list[psutil.Process]:
        """What runs there under a user's number."""
        found = []
        for process in psutil.Process(self.init).children(recursive=True):
            with suppress(psutil.Error):
                if process.uids().real == user:
                    found.append(process)
        return found

    def user(self, name: str) -> int:
        """A user's number there."""
        return int(self.run(f"id --user {name}"))

    def _first_process(self) -> int:
        """The process that is the first one of its own."""
        for process in psutil.Process(self.process.pid).children(recursive=True):
            with suppress(psutil.Error, OSError):
                status = Path(f"/proc/{process.pid}/status").read_text()
                if re.search(r"^NSpid:\t\d+\t1$", status, re.MULTILINE):
                    return process.pid
        return 0

    def _answers(self) -> bool:
        try:
            return "running" in self.run("systemctl is-system-running || true")
        except AssertionError:
            return False

    def _until(self, condition: Callable[[], int], what: str, seconds: float = 60.0) -> int:
        end = time.monotonic() + seconds
        while time.monotonic() < end and self.process.poll() is None:
            if value := condition():
                return value
            time.sleep(0.2)
        raise AssertionError(f"not {what}: {self.log.read_text(errors='replace')[-3000:]}")


@contextmanager
def machine(home: Path, name: str) -> Iterator[Machine]:
    """A machine whose layer of files lies below `home`."""
    layer = home / name
    upper, work, root = (layer / each for each in ("upper", "work", "root"))
    for folder in (upper, work, root):
        folder.mkdir(parents=True)
    options = f"lowerdir=/,upperdir={upper},workdir={work}"
    subprocess.run(["mount", "-t", "overlay", "overlay", "-o", options, str(root)], check=True)
    log = layer / "console.log"
    try:
        for folder in (Path(sys.base_prefix), Path(sys.prefix), PROJECT):
            _open_way(root, folder)
        for folder in OWN:  # a party of this very machine is not one of that machine
            shutil.rmtree(root / folder, ignore_errors=True)
        with log.open("wb") as handle:
            process = subprocess.Popen(
                [str(NSPAWN), "--directory", str(root), "--machine", name, "--boot", "--keep-unit",
                 "--register=no", "--resolv-conf=off", "--console=pipe", "systemd.unit=basic.target"],
                stdin=subprocess.DEVNULL, stdout=handle, stderr=handle,
            )  # fmt: skip
        try:
            yield Machine(root, process, log)
        finally:
            process.terminate()  # an orderly shutdown
            try:
                process.wait(timeout=60)
            except subprocess.TimeoutExpired:
                process.kill()
                process.wait()
    finally:
        subprocess.run(["umount", "--lazy", str(root)], check=True)


def steps(readme: str) -> list[str]:
    """The commands of a README's "Set up, once", without those that are done here already."""
    section = readme.partition("## Set up, once")[2].partition("\n## ")[0]
    commands = re.findall(r"^    ([a-z].*)$", section, re.MULTILINE)
    commands = [command for command in commands if shutil.which(command.split()[0])]  # not what one prints
    return [command for command in commands if not command.startswith(DONE)]


def _open_way(root: Path, folder: Path) -> None:
    """Let other users than root come to a folder, there and nowhere else."""
    for each in (folder, *folder.parents):
        there = root / str(each).lstrip("/")
        there.chmod(there.stat().st_mode | 0o055)
