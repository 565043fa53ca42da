"""A federation of three silos on this machine, from federation.toml to a merged adapter; `make deploy-demo`.

What institutions run on machines of their own runs here side by side on the loopback interface: a server and
three silos, each with the folder that `fedmerge deploy init` wrote for it, each behind its proxy (nginx).
"""

from __future__ import annotations

import sys
import tempfile
import time
from pathlib import Path

sys.path.insert(0, str(Path(__file__).parent.parent))

from tests.deployment.live import NGINX, federation

BEGAN = time.monotonic()


def say(text: str) -> None:
    print(f"{time.monotonic() - BEGAN:6.1f} s  {text}", flush=True)


def main() -> None:
    home = Path(tempfile.mkdtemp(prefix="fedmerge-demo-"))
    if NGINX is None:
        say("nginx is not installed (Debian: apt-get install nginx): the nodes reach the SuperLink directly")
    say(f"fedmerge deploy init: the parties' folders in {home / 'out'}")
    with federation(home, policy={"max-rounds": 3}, proxies=NGINX is not None, start=False) as live:
        live.start_server()
        say("the server answers: SuperLink (TLS, database, process isolation), its SuperExec, its proxy")
        live.register()
        say("Flower knows the nodes' public keys")
        for silo in live.silos:
            live.start_silo(silo)
            say(f"{silo}: SuperNode and SuperExec run; its rows stay in {home / f'{silo}.jsonl'}")
        run = live.submit(**{"run.rounds": 1, "train.steps": 20})
        say(f"bin/run.sh: run {run} is submitted; each silo trains on its own text, the server merges")
        say(f"the run is {live.wait(run, 2400)}")
        print(live.call("logs", run).strip())
        say(f"adapter: {live.folder(run) / 'adapter'}")
    say(f"every process has ended; what they wrote is in {home}")


if __name__ == "__main__":
    main()
