"""A device that has no room now and then: operations that make a tensor fail when they are told to."""

from __future__ import annotations

from collections.abc import Callable
from typing import Any

import torch
from torch import Tensor
from torch.utils._python_dispatch import TorchDispatchMode


class Cramped(TorchDispatchMode):
    """Operations that make a new tensor fail where `full` says so.

    Args:
        full: `(number of the operation, from 0) -> bool`.
        device: type of the devices that are meant.
    """

    def __init__(self, full: Callable[[int], bool], device: str = "cpu") -> None:
        super().__init__()
        self.full, self.device, self.made = full, device, 0

    def __torch_dispatch__(self, func: Any, types: Any, args: Any = (), kwargs: Any = None) -> Any:
        if self._makes(func) and self._concerned(args, kwargs or {}):
            self.made += 1
            if self.full(self.made - 1):
                raise torch.OutOfMemoryError(f"no room for {func}")
        return func(*args, **(kwargs or {}))

    def _makes(self, func: Any) -> bool:
        """Whether it takes memory: neither in place, nor a view, nor a plain number."""
        returns = func._schema.returns
        tensors = any("Tensor" in str(given.type) for given in returns)
        return tensors and all(given.alias_info is None for given in returns)

    def _concerned(self, args: Any, kwargs: Any) -> bool:
        if self.device == "cpu":
            return True
        wanted = kwargs.get("device")
        if wanted is not None:
            return torch.device(wanted).type == self.device
        flat = [part for given in args for part in (given if isinstance(given, list | tuple) else [given])]
        return any(isinstance(part, Tensor) and part.device.type == self.device for part in flat)
