"""The adapter of round 0, made in a process of its own.

It takes transformers and PEFT, which a server needs for nothing else: they would stay in its memory for the
whole run, 240 MB beside what the replies take.
"""

from __future__ import annotations

import multiprocessing
import signal
import sys
from collections.abc import Callable, Iterator, Sequence
from contextlib import contextmanager
from multiprocessing.connection import Connection
from multiprocessing.process import BaseProcess

import torch

from fedmerge.adapters import Adapter
from fedmerge.errors import FedMergeError
from fedmerge.silo.settings import SiloSettings

_SECONDS_TO_END = 5.0


Making = Callable[[Sequence[str] | None], Adapter]
"""Makes the first adapter, of the agreed labels; as `silo.lora.initial_adapter`."""


@contextmanager
def first_adapter(settings: SiloSettings) -> Iterator[Making]:
    """A process that gets ready to make the first adapter, while the labels are still being agreed on.

    Where transformers is loaded already, as in a simulation, the adapter is made in this process.

    Args:
        settings: base, lora, task and seed are used.

    Yields:
        What makes it. It raises what `initial_adapter` raises, and RuntimeError, with the reason as far as it
        is known, where the process could not load what it takes, or ended without an answer.
    """
    if "transformers" in sys.modules:
        yield lambda labels: _made(settings, labels)
        return
    context = multiprocessing.get_context("spawn")  # a fork would have this process's locks, and no threads
    ours, theirs = context.Pipe()
    maker = context.Process(target=_make, args=(theirs, settings), name="first-adapter", daemon=True)
    maker.start()
    theirs.close()  # so that the end of either process is the end of the pipe
    try:
        yield lambda labels: _asked(maker, ours, labels)
    finally:
        ours.close()
        maker.join(_SECONDS_TO_END)
        maker.kill()


def _asked(maker: BaseProcess, pipe: Connection, labels: Sequence[str] | None) -> Adapter:
    try:
        pipe.send(labels)
        adapter, error = pipe.recv()
    except (EOFError, OSError):
        maker.join(_SECONDS_TO_END)
        raise RuntimeError(
            f"the process that makes the first adapter ended early, with {maker.exitcode}"
        ) from None
    if error is not None:
        raise error
    tensors = {name: torch.from_numpy(values) for name, values in adapter["tensors"].items()}
    return Adapter(tensors, adapter["lora"], adapter["metadata"])


def _make(asked: Connection, settings: SiloSettings) -> None:
    """The process: load what it takes, wait for the labels, answer once."""
    signal.signal(signal.SIGINT, signal.SIG_IGN)  # the server's interrupt closes the pipe
    try:
        import fedmerge.silo.lora  # noqa: F401, PLC0415 (all of this process is for it)

        made = _made(settings, asked.recv())
    except EOFError:  # the server gave up
        return
    except FedMergeError as error:
        asked.send((None, error))
        return
    except Exception as error:  # of a library; it may not travel as it is
        asked.send((None, RuntimeError(f"the first adapter can't be made: {type(error).__name__}: {error}")))
        return
    # As arrays: torch would hand its tensors over in shared memory, of which a container has little.
    tensors = {name: tensor.numpy() for name, tensor in made.tensors.items()}
    asked.send(({"tensors": tensors, "lora": made.lora, "metadata": made.metadata}, None))


def _made(settings: SiloSettings, labels: Sequence[str] | None) -> Adapter:
    from fedmerge.silo.lora import initial_adapter  # noqa: PLC0415 (transformers and PEFT)

    return initial_adapter(settings, labels)
