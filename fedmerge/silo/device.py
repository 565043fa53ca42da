"""Where a silo computes."""

from __future__ import annotations

import torch

from fedmerge.errors import ConfigError


def pick_device(name: str) -> torch.device:
    """The device of `train.device`: "auto" takes a GPU where torch sees one.

    Raises:
        ConfigError: a GPU is asked for that torch doesn't see.
    """
    device = torch.device(("cuda" if torch.cuda.is_available() else "cpu") if name == "auto" else name)
    if device.type == "cuda" and (device.index or 0) >= torch.cuda.device_count():
        raise ConfigError(
            f"train.device = {name!r}: torch sees {torch.cuda.device_count()} GPUs in this process"
        )
    return device
