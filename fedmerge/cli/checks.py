"""What `fedmerge doctor` looks at on a machine; each check is a function that never raises."""

from __future__ import annotations

import importlib
import os
import platform
import shutil
import socket
import sys
import urllib.error
import urllib.request
from collections.abc import Iterator
from dataclasses import dataclass
from importlib import metadata
from pathlib import Path

OK, NOTE, BROKEN = "ok", "note", "broken"

_IMPORTED = ("torch", "flwr", "transformers", "peft", "datasets", "safetensors", "ray")
_HUB_SECONDS = 3.0
_LITTLE_DISK, _NO_DISK = 2 << 30, 100 << 20
_PORTS = (
    ("FLWR_LOCAL_CONTROL_API_PORT", 39093),
    ("FLWR_LOCAL_SUPERLINK_HTTP_API_PORT", 39091),
)


@dataclass(frozen=True)
class Check:
    """One thing looked at: `state` is "ok", "note" (good to know) or "broken" (needed, and does not work)."""

    name: str
    state: str
    found: str
    advice: str = ""


def machine() -> Iterator[Check]:
    """All checks that need no configuration."""
    yield python()
    for name in _IMPORTED:
        yield package(name)
    yield flower_command()
    yield gpu()
    yield processor()
    yield from superlink()
    yield hub()
    yield cache()


def python() -> Check:
    """The running Python."""
    return Check("python", OK, f"{platform.python_version()} ({sys.executable})")


def package(name: str) -> Check:
    """Whether a package is there, imports, and is of a version that fedmerge was tested with."""
    try:
        version = metadata.version(name)
        importlib.import_module(name)
    except metadata.PackageNotFoundError:
        return Check(name, BROKEN, "not installed", f"pip install '{_wanted(name)}'")
    except Exception as error:
        # A broken binary or a clash of versions can raise anything.
        return Check(
            name, BROKEN, f"{version} does not import: {error}", f"pip install --force-reinstall {name}"
        )
    return _range_check(name, version)


def _range_check(name: str, version: str) -> Check:
    from packaging.requirements import Requirement

    wanted = _wanted(name)
    if Requirement(wanted).specifier.contains(version, prereleases=True):
        return Check(name, OK, version)
    return Check(name, NOTE, version, f"fedmerge is tested with {wanted}")


def _wanted(name: str) -> str:
    """The requirement that fedmerge states on a package; the bare name where it states none."""
    try:
        requirements = metadata.requires("fedmerge") or []
    except metadata.PackageNotFoundError:
        return name
    from packaging.requirements import Requirement

    parsed = [Requirement(line) for line in requirements]
    return next((f"{name}{entry.specifier}" for entry in parsed if entry.name == name), name)


def flower_command() -> Check:
    """The `flwr` script, which `--engine flower` and deployments call."""
    beside = Path(sys.executable).parent / "flwr"
    found = str(beside) if beside.is_file() else shutil.which("flwr")
    if found:
        return Check("flwr command", OK, found)
    return Check("flwr command", NOTE, "not found", "only `--engine flower` needs it: pip install flwr")


def gpu() -> Check:
    """The GPUs that torch can use."""
    try:
        import torch
    except Exception as error:
        return Check("gpu", BROKEN, f"torch does not import: {error}")
    if torch.cuda.is_available():
        devices = [torch.cuda.get_device_properties(index) for index in range(torch.cuda.device_count())]
        told = ", ".join(f"{device.name} ({device.total_memory / 2**30:.0f} GiB)" for device in devices)
        return Check("gpu", OK, told)
    if shutil.which("nvidia-smi"):
        advice = "a torch built for your driver's CUDA would use the GPU: https://pytorch.org/get-started"
        return Check(
            "gpu", NOTE, f"there is an NVIDIA driver, but torch {torch.__version__} sees no GPU", advice
        )
    return Check("gpu", OK, "none; silos train on the CPU")


def processor() -> Check:
    """Cores, memory, and whether the CPU computes bfloat16 itself."""
    found = f"{_cores()} cores"
    if memory := memory_bytes():
        found += f", {memory / 2**30:.0f} GiB memory"
    flags = _processor_flags()
    if not flags:
        return Check("cpu", OK, f"{found}; native bfloat16 unknown on {platform.system()}")
    if flags & {"avx512_bf16", "amx_bf16", "bf16"}:
        return Check("cpu", OK, f"{found}; native bfloat16")
    return Check("cpu", OK, f"{found}; no native bfloat16, so train.autocast = 'auto' trains in float32")


def memory_bytes() -> int:
    """The memory of this machine in bytes; 0 where the system does not say."""
    try:
        return os.sysconf("SC_PAGE_SIZE") * os.sysconf("SC_PHYS_PAGES")
    except (ValueError, OSError, AttributeError):
        return 0


def _cores() -> int:
    affinity = getattr(os, "sched_getaffinity", None)
    return len(affinity(0)) if affinity else os.cpu_count() or 1


def _processor_flags() -> set[str]:
    try:
        lines = Path("/proc/cpuinfo").read_text(encoding="utf-8", errors="replace").splitlines()
    except OSError:
        return set()
    flags = next((line for line in lines if line.lower().startswith(("flags", "features"))), "")
    return set(flags.partition(":")[2].split())


def superlink() -> Iterator[Check]:
    """A local SuperLink of Flower that an earlier `flwr run` left behind, or whoever holds its ports."""
    processes = superlink_processes()
    for variable, default in _PORTS:
        text = os.environ.get(variable, str(default))
        if not text.isdecimal() or not 0 < int(text) < 2**16:
            yield Check("flower port", NOTE, f"{variable} = {text!r} is no port", f"unset {variable}")
            continue
        if not _listening(int(text)):
            yield Check(f"port {text}", OK, "free")
        elif processes:
            numbers = " ".join(map(str, processes))
            advice = (
                "`flwr run` would reuse it, with the environment and folder of whoever started it; "
                f"`fedmerge simulate` does not. Stop it: kill {numbers}"
            )
            yield Check(f"port {text}", NOTE, f"a SuperLink is running (process {numbers})", advice)
        else:
            yield Check(
                f"port {text}",
                NOTE,
                "taken by another program",
                f"move `flwr run` away: export {variable}=...",
            )


def superlink_processes() -> list[int]:
    """Numbers of the running processes that are a `flower-superlink`; empty where there is no /proc."""
    found = []
    for entry in Path("/proc").glob("[0-9]*/cmdline"):
        try:
            command = entry.read_bytes().split(b"\0")
        except OSError:
            continue
        if any(Path(os.fsdecode(part)).name == "flower-superlink" for part in command[:3]):
            found.append(int(entry.parent.name))
    return sorted(found)


def _listening(port: int) -> bool:
    with socket.socket() as probe:
        probe.settimeout(0.5)
        return probe.connect_ex(("127.0.0.1", port)) == 0


def hub() -> Check:
    """Whether bases and data sets can be fetched by Hub id."""
    variable = next((name for name in ("HF_HUB_OFFLINE", "TRANSFORMERS_OFFLINE") if _set(name)), "")
    if variable:
        return Check("hub", NOTE, f"offline by {variable}", "Hub ids work only where they are in the cache")
    address = os.environ.get("HF_ENDPOINT", "https://huggingface.co")
    if not address.startswith(("https://", "http://")):
        return Check("hub", NOTE, f"HF_ENDPOINT = {address!r} is no address", "unset HF_ENDPOINT")
    try:
        urllib.request.urlopen(urllib.request.Request(address, method="HEAD"), timeout=_HUB_SECONDS).close()
    except urllib.error.HTTPError:
        pass  # Somebody answered.
    except (OSError, ValueError) as error:
        reason = getattr(error, "reason", error)
        advice = "Hub ids work only where they are in the cache; HF_HUB_OFFLINE=1 saves the waiting"
        return Check("hub", NOTE, f"{address} can't be reached ({reason})", advice)
    return Check("hub", OK, f"{address} answers")


def _set(variable: str) -> bool:
    return os.environ.get(variable, "").upper() in ("1", "ON", "YES", "TRUE")


def cache() -> Check:
    """The folder where downloads and prepared data sets go."""
    folder = Path(os.environ.get("HF_HOME", "~/.cache/huggingface")).expanduser()
    existing = existing_parent(folder)
    if os.access(existing, os.W_OK | os.X_OK):
        return Check("cache", OK, str(folder))
    return Check("cache", BROKEN, f"{folder} can't be written", "set HF_HOME to a folder that you can write")


def disk(folder: Path) -> Check:
    """Whether runs can be written at `folder`."""
    existing = existing_parent(folder)
    free = shutil.disk_usage(existing).free
    found = f"{free / 2**30:.1f} GiB free at {existing}"
    if not os.access(existing, os.W_OK | os.X_OK):
        return Check("disk", BROKEN, f"{existing} can't be written", "set run.output to another folder")
    if free < _NO_DISK:
        return Check("disk", BROKEN, found, "make room, or set run.output to another disk")
    return Check("disk", NOTE if free < _LITTLE_DISK else OK, found)


def existing_parent(folder: Path) -> Path:
    """The nearest folder at or above `folder` that exists."""
    folder = folder.expanduser().absolute()
    return next(path for path in (folder, *folder.parents) if path.is_dir())
