"""Where a fused kernel takes the place of a rule's stages: the same bits, sooner.

The CPU kernels are loaded once a process has merged enough without them: loading costs half a second, which
the plain composition spends on some ten million values, in one large merge or in many small rounds.
"""

from __future__ import annotations

import os
import sys
from collections.abc import Callable, Iterator, Sequence
from functools import partial
from importlib.util import find_spec
from typing import TYPE_CHECKING

import numpy as np
import torch
from torch import Tensor

from fedmerge.adapters.batches import in_batches, memory_for
from fedmerge.adapters.context import Context
from fedmerge.adapters.uploads import on_device
from fedmerge.errors import RuleError
from fedmerge.kernels.outputs import empty_tensors
from fedmerge.kernels.plan import Fused, fused
from fedmerge.rules import Rule
from fedmerge.rules.randomness import stream_key

if TYPE_CHECKING:
    from fedmerge.adapters.apply import Source

KERNELS = ("auto", "plain", "numba", "triton")

WORTH_LOADING = 1 << 24
"""Values of all clients, in one merge or several, after which "auto" loads the CPU kernels."""

WORTH_LOADING_FOR_SUMS = 1 << 27
"""The same in one merge, where nothing is selected: 75 M values take 0.7 s of CPU without kernels, 0.2 s with
them, and loading takes 1.3 s and 120 MB, which a server that waits for its silos had better not hold."""

WORTH_CALLING = 1 << 18
"""The same once they are loaded."""

_merged_without = 0
"""Values that kernels could have merged in this process, had they been loaded. Only time depends on it."""

Merge = Callable[[Fused, Sequence[Sequence[Tensor]], Tensor, "np.ndarray | None", Sequence[Tensor]], None]


def merged_by_kernel(
    rule: Rule, sources: Sequence[Source], context: Context
) -> Iterator[tuple[Source, Tensor]]:
    """Merge by a kernel those sources that there is one for, if the context wants kernels.

    Args:
        rule: an elementwise rule over single tensors.
        sources: tensors as the clients sent them, or made on demand.
        context: weights, names and place; told what ran.

    Yields:
        The source, and its merged values in its shape.

    Raises:
        RuleError: a kernel was asked for by its name, and there is none for this rule.
    """
    plan = fused(rule)
    stored = [
        source for source in sources if (source.stored or source.together) and source.dtype == torch.float32
    ]
    merge = None if plan is None or not stored else _kernel(plan, stored, context)
    if merge is None and context.kernel not in ("auto", "plain") and sources:
        raise RuleError(
            f"kernel={context.kernel!r}: there is none for {rule}, or not for these tensors and "
            f"weights, on {context.device.type}; 'auto' or 'plain' can merge them"
        )
    if plan is None or merge is None:
        return
    # On a CPU what needs no copy goes all at once; the rest one by one, so that one stack lies beside it.
    budget = memory_for(context.device) if context.device.type == "cuda" else 0.0

    # Looked up once: a view costs a microsecond, and the adapters of many clients have thousands.
    rows = {source.name: _rows(source, context) for source in stored if source.stored}
    sizes = {source.name: _bytes_beside(source, rows.get(source.name), context) for source in stored}

    def beside(source: Source) -> int:
        return sizes[source.name]

    def work(batch: Sequence[Source]) -> list[Tensor]:
        looked_up = [rows.get(source.name) or _rows(source, context) for source in batch]
        return _merge(merge, plan, batch, looked_up, context)

    results = in_batches(stored, beside, budget, work, ahead=context.device.type == "cuda")
    for source, output in zip(stored, results, strict=True):
        if output is not None:  # else there is no room for it as a whole: the stages go by tiles
            yield source, output.reshape(source.shape)


def _merge(
    merge: Merge, plan: Fused, sources: Sequence[Source], rows: Sequence[Sequence[Tensor]], context: Context
) -> list[Tensor]:
    outputs = _outputs([source.coordinates for source in sources], context.device)
    dtype = _dtype(rows, context)
    there = iter(on_device([row for clients in rows for row in clients], context.device, dtype))
    values = [[next(there) for _ in clients] for clients in rows]
    keys = None if plan.drop is None else _keys(sources, context)
    merge(plan, values, context.weights, keys, outputs)
    return outputs


def _outputs(sizes: Sequence[int], device: torch.device) -> list[Tensor]:
    if device.type == "cpu":
        return empty_tensors(sizes)
    return [torch.empty(size, dtype=torch.float32, device=device) for size in sizes]


def _dtype(rows: Sequence[Sequence[Tensor]], context: Context) -> torch.dtype:
    """What the kernel reads: float32, or on a GPU the 16 bits that all rows have."""
    dtypes = {row.dtype for clients in rows for row in clients}
    half = len(dtypes) == 1 and dtypes <= {torch.bfloat16, torch.float16}
    return dtypes.pop() if half and context.device.type == "cuda" else torch.float32


def _bytes_beside(source: Source, rows: Sequence[Tensor] | None, context: Context) -> int:
    """What merging a source takes besides what lies in place: copies of the clients' rows."""
    if rows is not None and all(_as_kernels_want(row, context) for row in rows):
        return 0
    return len(context.silos) * source.coordinates * source.dtype.itemsize


def _rows(source: Source, context: Context) -> list[Tensor]:
    return [source.whole(client) for client in range(len(context.silos))]


def _as_kernels_want(row: Tensor, context: Context) -> bool:
    wanted = context.device  # "cuda" is any GPU here: which one matters to copies, not to what they take
    there = row.device.type == wanted.type and wanted.index in (None, row.device.index)
    return row.dtype == torch.float32 and there and row.is_contiguous()


def _keys(sources: Sequence[Source], context: Context) -> np.ndarray:
    """The random stream of each tensor of each client, `(tensors, clients, 2)`."""
    keys = [
        [stream_key(context.seed, context.round, silo, source.name) for silo in context.silos]
        for source in sources
    ]
    return np.array(keys, dtype=np.int64)


def _kernel(plan: Fused, sources: Sequence[Source], context: Context) -> Merge | None:
    """The kernel of this device, None where there is none or it would not pay."""
    if context.kernel == "plain":
        return None
    if context.device.type == "cpu" and context.kernel in ("auto", "numba"):
        return _numba(plan, sources, context)
    if context.device.type == "cuda" or "TRITON_INTERPRET" in os.environ:
        return _triton(plan, sources, context)
    return None


def _numba(plan: Fused, sources: Sequence[Source], context: Context) -> Merge | None:
    values = len(context.silos) * sum(source.coordinates for source in sources)
    if context.kernel == "auto" and not _pays(plan, values):
        return None
    from fedmerge.kernels import cpu  # noqa: PLC0415 (it loads numba)

    if not cpu.serves(plan, torch.float32, context.weights):
        return None
    context.ran.add("numba")
    return partial(cpu.merge_tensors, threads=torch.get_num_threads())


def _pays(plan: Fused, values: int) -> bool:
    """Whether a merge of so many values is worth the kernels' start."""
    global _merged_without  # noqa: PLW0603 (what a process has spent so far)
    if "fedmerge.kernels.cpu" in sys.modules:
        return values >= WORTH_CALLING
    if plan.keep is None and plan.drop is None and not plan.elect:
        return values >= WORTH_LOADING_FOR_SUMS
    _merged_without += values
    return _merged_without >= WORTH_LOADING


def _triton(plan: Fused, sources: Sequence[Source], context: Context) -> Merge | None:
    """The GPU's kernels; on a CPU Triton's interpreter runs them, for tests."""
    if context.kernel not in ("auto", "triton") or find_spec("triton") is None:
        return None
    from fedmerge.kernels import gpu  # noqa: PLC0415 (it loads triton)

    if not gpu.serves(plan, torch.float32, context.weights):
        return None
    context.ran.add("triton")
    return gpu.merge_tensors
