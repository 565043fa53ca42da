"""What a server's process takes at most while large replies come in: ours, and Flower's own FedAvg.

    python benchmarks/memory.py [--megabytes 100] [--silos 3] [--rounds 2] [--json out.json]

The process that is measured is what a ServerApp is in a deployment: it runs `MergeStrategy` (or Flower's
`FedAvg`) over Flower's own `HttpGrid`, and pulls every object of every reply over HTTP. The SuperLink at the
other end is a small one in this script, whose silos answer at once with random float32 values in tensors of 1
MB: equal chunks would be sent once only. *strategy* is a Flower app of one's own with nothing but
`MergeStrategy`, as *flower* is one with nothing but `FedAvg`; *fedmerge* has loaded all that fedmerge's own
ServerApp loads, and keeps a run's folder from which the run can be gone on with: every reply is written down
before it is merged, as in a deployment. *Peak* is the resident memory of the process at its highest, its
imports included; *imports* is what it took before the first round.
"""

from __future__ import annotations

import argparse
import json
import os
import platform
import subprocess
import sys
import tempfile
import threading
import time
from http.server import BaseHTTPRequestHandler, ThreadingHTTPServer
from pathlib import Path
from typing import Any, ClassVar

ROOT = Path(__file__).parents[1]
CEILING_BYTES = 1_000_000_000
"""What fedmerge's server may take for 3 silos of 100 MB."""

VALUES = 250_000
"""Of a tensor: 1 MB."""


def tensors(megabytes: int, seed: int) -> dict[str, Any]:
    """An adapter of random values."""
    import torch

    generator = torch.Generator().manual_seed(seed)
    return {f"layer.{n:03}.weight": torch.randn(500, 500, generator=generator) for n in range(megabytes)}


def superlink(megabytes: int, silos: int) -> ThreadingHTTPServer:
    """A SuperLink's Runtime API over HTTP, with silos that answer at once."""
    from flwr.proto import message_pb2, runtime_pb2

    from fedmerge.wire.protocol import reply_content

    sys.path.insert(0, str(ROOT))
    from tests.faults.link import Link

    def answer(message: Any) -> Any:
        return reply_content(tensors(megabytes, message.metadata.dst_node_id), 10)

    link, lock = Link(answer, {}, tuple(range(11, 11 + silos))), threading.Lock()
    calls = {
        "get-nodes": (link.GetNodes, runtime_pb2.GetNodesRequest),
        "push-messages": (link.PushMessages, runtime_pb2.PushAppMessagesRequest),
        "push-object": (link.PushObject, message_pb2.PushObjectRequest),
        "pull-messages": (link.PullMessages, runtime_pb2.PullAppMessagesRequest),
        "pull-object": (link.PullObject, message_pb2.PullObjectRequest),
        "confirm-message-received": (link.ConfirmMessageReceived, message_pb2.ConfirmMessageReceivedRequest),
    }

    class Handler(BaseHTTPRequestHandler):
        protocol_version = "HTTP/1.1"
        timeout: ClassVar[int] = 60

        def do_POST(self) -> None:
            body = self.rfile.read(int(self.headers["content-length"]))
            call, kind = calls[self.path.rsplit("/", 1)[1]]
            with lock:
                response = call(kind.FromString(body))
            data = response.SerializeToString() if hasattr(response, "SerializeToString") else b""
            self.send_response(200)
            self.send_header("content-type", "application/protobuf")
            self.send_header("content-length", str(len(data)))
            self.end_headers()
            self.wfile.write(data)

        def log_message(self, *given: object) -> None:
            pass

    return ThreadingHTTPServer(("127.0.0.1", 0), Handler)


def serve(given: argparse.Namespace) -> dict[str, Any]:
    """Be the ServerApp's process: run the rounds, and say what it took."""
    from flwr.serverapp.strategy import FedAvg
    from flwr.superlink.grid.http_grid import HttpGrid

    from fedmerge.engine.identity import empty_run, server_identity
    from fedmerge.server.books import Keeping
    from fedmerge.server.folder import RunFolder
    from fedmerge.server.heap import return_freed_memory
    from fedmerge.server.strategy import MergeStrategy
    from fedmerge.server.streaming import StreamingGrid
    from fedmerge.wire.records import to_record

    kind, silos, rounds = given.be, given.silos, given.rounds
    if kind == "fedmerge":
        import fedmerge.server_app  # noqa: F401 (what a ServerApp has loaded)
    if kind != "flower":
        return_freed_memory()
    grid: Any = HttpGrid(f"127.0.0.1:{given.port}", insecure=True, token="none")
    grid.set_run(empty_run(1))
    if kind != "flower":
        grid = StreamingGrid(grid, packed=kind == "fedmerge")
        kept: dict[str, Any] = {}
        if kind == "fedmerge":
            folder = RunFolder(given.run, {"run.rounds": rounds})
            folder.start({})
            kept = {"folder": folder, "observer": folder, "record": Keeping(until_closed=True)}
        strategy: Any = MergeStrategy(min_nodes=silos, evaluate=False, quorum=1.0, gate="off()", **kept)
    else:
        everyone = {"min_available_nodes": silos, "min_train_nodes": silos, "min_evaluate_nodes": 0}
        strategy = FedAvg(fraction_evaluate=0.0, **everyone)
    imports, began = resident("VmRSS"), time.perf_counter()
    with server_identity(run_id=1):
        strategy.start(grid, to_record(tensors(given.megabytes, 0)), num_rounds=rounds, timeout=600)
    seconds = time.perf_counter() - began
    return {"kind": kind, "imports": imports, "peak": resident("VmHWM"), "seconds": seconds / rounds}


def resident(key: str) -> int:
    """Resident memory of this process in bytes: "VmRSS" now, "VmHWM" at its highest."""
    lines = Path("/proc/self/status").read_text(encoding="ascii").splitlines()
    return 1024 * next(int(line.split()[1]) for line in lines if line.startswith(key))


def measured(kind: str, megabytes: int, silos: int, rounds: int) -> dict[str, Any]:
    """One server's process against a SuperLink in this one."""
    server = superlink(megabytes, silos)
    threading.Thread(target=server.serve_forever, daemon=True).start()
    words = [sys.executable, __file__, "--be", kind, "--port", str(server.server_port)]
    words += ["--megabytes", str(megabytes), "--silos", str(silos), "--rounds", str(rounds)]
    environment = os.environ | {"OMP_NUM_THREADS": "1"}
    try:
        with tempfile.TemporaryDirectory() as run:
            words += ["--run", f"{run}/run"]
            done = subprocess.run(words, capture_output=True, text=True, check=False, env=environment)
    finally:
        server.shutdown()
        server.server_close()
    if done.returncode:
        raise SystemExit(f"{kind} failed:\n{done.stderr[-3000:]}")
    found: dict[str, Any] = json.loads(done.stdout.splitlines()[-1])
    return found


def options() -> argparse.Namespace:
    reader = argparse.ArgumentParser(
        description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter
    )
    reader.add_argument("--megabytes", type=int, default=100, help="of each silo's reply")
    reader.add_argument("--silos", type=int, default=3)
    reader.add_argument("--rounds", type=int, default=2)
    reader.add_argument("--only", choices=("fedmerge", "strategy", "flower"))
    reader.add_argument("--json", type=Path, help="where to write every measurement")
    reader.add_argument("--be", help=argparse.SUPPRESS)
    reader.add_argument("--port", type=int, help=argparse.SUPPRESS)
    reader.add_argument("--run", type=Path, help=argparse.SUPPRESS)
    return reader.parse_args()


def main() -> int:
    """Measure; 1 where fedmerge's server took more than it may."""
    given = options()
    if given.be:
        print(json.dumps(serve(given)))
        return 0
    what = f"{given.silos} x {given.megabytes} MB, {given.rounds} rounds"
    print(f"{platform.machine()}, {os.cpu_count()} cores, {what}")
    found = []
    for kind in [given.only] if given.only else ["fedmerge", "strategy", "flower"]:
        row = measured(kind, given.megabytes, given.silos, given.rounds)
        found.append(row)
        print(
            f"{kind:10} peak {row['peak'] / 1e6:6.0f} MB, {row['imports'] / 1e6:4.0f} MB of it imports, "
            f"{row['seconds']:5.1f} s a round",
            flush=True,
        )
    if given.json:
        given.json.write_text(json.dumps(found, indent=1) + "\n", encoding="utf-8")
    over = [row for row in found if row["kind"] != "flower" and row["peak"] > CEILING_BYTES]
    if over and given.megabytes * given.silos <= 300:
        print(f"more than the {CEILING_BYTES / 1e6:.0f} MB that it may take", file=sys.stderr)
        return 1
    return 0


if __name__ == "__main__":
    sys.exit(main())
