"""The last resort of a device without room: what can't be merged there in pieces is merged on the CPU.

Pieces come first. A fused kernel takes half as many tensors (`in_batches`), the stages half as many
coordinates (`in_tiles`), the truncation half as many modules (together.py). What must be seen whole, a
tensor of which only the largest entries count, say, can't be cut; then the whole merge is done again where
there is room.
"""

from __future__ import annotations

import logging
from collections.abc import Sequence
from dataclasses import replace

import torch

from fedmerge.adapters.adapter import Adapter
from fedmerge.adapters.batches import lacks_memory
from fedmerge.adapters.context import Context
from fedmerge.adapters.spaces import Placed, Space
from fedmerge.rules import Rule

logger = logging.getLogger(__name__)

CPU = torch.device("cpu")


def merge_with_room(
    space: Space, received: Adapter | None, deltas: Sequence[Adapter], rule: Rule, context: Context
) -> tuple[Placed, Context]:
    """Merge where the context says; on the CPU where its device has no room even for the smallest pieces.

    An elementwise rule in `factors()` gives the same bits there. Where a rule looks at inner products, or a
    space at singular vectors, it gives what a server without that device would give: the same to 1e-6 of the
    largest value.

    Args:
        space: of the merge, as the others.
        received: the adapter that the silos started from, if any.
        deltas: of all clients, in the order of the context's silos.
        rule: of the merge.
        context: of the merge.

    Returns:
        The merge, and the context that it was made in.

    Raises:
        RuntimeError: the device failed otherwise, or the CPU has no room either.
    """
    try:
        return space.merge(received, deltas, rule, context), context
    except RuntimeError as error:
        if context.device == CPU or not lacks_memory(error):
            raise
        logger.warning("%s has no room for this merge: the CPU merges (%s)", context.device, error)
    kernel = "auto" if context.kernel == "triton" else context.kernel
    context = replace(context, device=CPU, kernel=kernel, ran=set())
    return space.merge(received, deltas, rule, context), context
