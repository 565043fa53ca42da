"""Flower's running processes on this machine: as whom, with which flags, on which addresses."""

from __future__ import annotations

import ipaddress
from collections.abc import Iterator
from dataclasses import dataclass
from pathlib import Path

import psutil  # type: ignore[import-untyped]

from fedmerge.deployment.doctor.finding import CLOSED, NOTE, OPEN, Finding, judged
from fedmerge.deployment.doctor.units import flags_of

_COMMANDS = ("flower-superlink", "flower-supernode", "flower-superexec", "flwr-serverapp", "flwr-clientapp")


@dataclass(frozen=True)
class Running:
    """A process of Flower.

    Args:
        number: its process id.
        command: which of Flower's commands it is.
        words: its command line.
        root: whether it runs as root.
    """

    number: int
    command: str
    words: tuple[str, ...]
    root: bool

    @property
    def flags(self) -> dict[str, str]:
        """Its flags."""
        return flags_of(list(self.words))


def running(commands: tuple[str, ...] = _COMMANDS) -> list[Running]:
    """The processes of Flower that this user may see."""
    found = []
    for process in psutil.process_iter(["pid", "name", "cmdline", "uids"]):
        words = tuple(process.info["cmdline"] or ())
        names = [
            process.info["name"],
            *(Path(word).name for word in words[:6]),
        ]  # "python -m <module> <name>"
        command = next((name for name in names if name in commands), "")
        if command and words:  # one that has ended, and that nobody has waited for yet, has no words left
            uids = process.info["uids"]
            found.append(
                Running(process.info["pid"], command, words, uids is not None and uids.effective == 0)
            )
    return sorted(found, key=lambda each: each.number)


def listening(port: int, command: str = "flower-superlink") -> Running | None:
    """The process of Flower that serves a port."""
    for process in running((command,)):
        if any(there[1] == port for there in addresses(process.number)):
            return process
    return None


def addresses(number: int) -> set[tuple[str, int]]:
    """Where a process listens: (address, port); empty where this user may not know."""
    try:
        connections = psutil.Process(number).net_connections(kind="tcp")
    except (psutil.Error, OSError):
        return set()
    return {(each.laddr.ip, each.laddr.port) for each in connections if each.status == psutil.CONN_LISTEN}


def bound(process: Running, port: int) -> Finding:
    """Whether a port can be reached from other machines."""
    where = sorted(address for address, number in addresses(process.number) if number == port)
    outside = [address for address in where if not ipaddress.ip_address(address).is_loopback]
    told = f"{process.command} listens on {', '.join(where)}"
    close = "--host 127.0.0.1: the proxy beside it is the only way in"
    return judged(f"port {port} from outside", bool(outside), f"process {process.number}", told, close)


def as_root(processes: list[Running]) -> Iterator[Finding]:
    """Whether a process runs as root, which none needs."""
    for process in processes:
        told = "runs as root" if process.root else "runs as a user of its own"
        door = f"user of {process.command} ({process.number})"
        yield judged(door, process.root, "its user", told, "the systemd unit's User=")


def tokens(processes: list[Running]) -> Iterator[Finding]:
    """Whether the machine's users could read the token of a running task in `ps`.

    Flower 1.41 passes it as an argument; only the system can hide it.
    """
    shown = [each for each in processes if "--token" in each.flags]
    hidden = (
        "hidepid" in Path("/proc/mounts").read_text(encoding="utf-8")
        if Path("/proc/mounts").exists()
        else False
    )
    if shown and not hidden:
        numbers = ", ".join(str(each.number) for each in shown)
        close = "no other users on this machine, or mount /proc with hidepid=2; it is Flower's way to pass it"
        yield Finding(
            "task token in ps", NOTE, f"command line of {numbers}", "every user here can read it", close
        )


def superlink_flags(process: Running) -> Iterator[Finding]:
    """What a running SuperLink was told about who may join and who may take tasks."""
    given, asked = process.flags, f"flags of process {process.number}"
    yield judged(
        "registered SuperNodes",
        "--enable-supernode-auth" not in given,
        asked,
        "only registered keys" if "--enable-supernode-auth" in given else "whoever connects becomes a node",
        "--enable-supernode-auth, and flwr supernode register for each site",
    )
    secret = given.get("--isolation") == "process" and "--superexec-auth-secret-file" in given
    told = (
        "process, with a secret"
        if secret
        else f"{given.get('--isolation') or 'subprocess'}, without a secret"
    )
    close = "--isolation process --superexec-auth-secret-file superexec.secret"
    yield judged("isolation of apps", not secret, asked, told, close)
    if "--insecure" in given:
        yield Finding("TLS of the SuperLink", OPEN, asked, "--insecure", "--ssl-certfile and its companions")
    else:
        yield Finding("TLS of the SuperLink", CLOSED, asked, "with a certificate")
    off = "--disable-runtime-dependency-installation" in given
    told = "off" if off else "on: a run's own list of packages is installed here"
    yield judged("packages at run time", not off, asked, told, "--disable-runtime-dependency-installation")
