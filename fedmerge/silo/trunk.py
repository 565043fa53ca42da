"""The frozen trunk: layers below the lowest adapted one give the same output for a row every time.

They are computed once for each row and kept (`train.cache-trunk`); after that only the layers above
run. A base's own dropout inside the trunk is off then, also in training.
"""

from __future__ import annotations

from collections.abc import Callable, Iterator, Sequence
from contextlib import contextmanager
from typing import Any

from torch import Tensor, nn

from fedmerge.errors import ConfigError
from fedmerge.silo.targets import layer_stack


class Cut:
    """A place in the base's list of layers: below it is trunk.

    Args:
        layers: the base's own list.
        depth: number of layers below.
    """

    def __init__(self, layers: nn.ModuleList, depth: int) -> None:
        """Remember the place; nothing is changed."""
        self.layers = layers
        self.depth = depth
        self._companions = 0  # what a layer returns beside its hidden states, in a tuple
        self._in_tuple = False

    def output(self, run: Callable[[], Any]) -> Tensor:
        """The trunk's output (rows, length, hidden) while `run` runs the base; the layers above don't run."""

        def catch(_module: nn.Module, _inputs: Any, output: Any) -> None:
            raise _Reached(output)

        hook = self.layers[self.depth - 1].register_forward_hook(catch)
        try:
            run()
        except _Reached as reached:
            output = reached.output
        else:
            raise ConfigError(
                "train.cache-trunk: the base does not run its layers one by one; set it to false"
            )
        finally:
            hook.remove()
        self._in_tuple = isinstance(output, tuple)
        self._companions = len(output) - 1 if self._in_tuple else 0
        hidden: Tensor = output[0] if self._in_tuple else output
        return hidden.detach()

    @contextmanager
    def fed(self, hidden: Tensor) -> Iterator[None]:
        """The base with its trunk replaced by a known output (rows, length, hidden)."""
        output = (hidden, *[None] * self._companions) if self._in_tuple else hidden
        replaced = [self.layers[index] for index in range(self.depth)]
        try:
            for index, layer in enumerate(replaced):
                self.layers[index] = _Passage(layer, output)
            yield
        finally:
            for index, layer in enumerate(replaced):
                self.layers[index] = layer


def find_cut(model: nn.Module, targets: Sequence[str]) -> Cut:
    """The cut below the lowest adapted layer.

    Raises:
        ConfigError: adapted modules lie outside the base's one list of layers, or in its lowest layer.
    """
    stack = layer_stack(model)
    numbers = [None if stack is None else stack.index_of(target) for target in targets]
    inside = [number for number in numbers if number is not None]
    if stack is None or len(inside) < len(numbers):
        raise ConfigError(
            f"train.cache-trunk: {type(model).__name__} can't be cut: the adapter does not lie within one "
            "list of layers; set it to false"
        )
    if min(inside) == 0:
        raise ConfigError(
            "train.cache-trunk: the adapter reaches down to the base's lowest layer, nothing below it is "
            "frozen; set lora.layers = 'top 2', say, or train.cache-trunk = false"
        )
    return Cut(stack.layers, min(inside))


def check_same(whole: Tensor, cut: Tensor, mask: Tensor) -> None:
    """Compare the base's output with and without the trunk computed, at the places that hold a token.

    Args:
        whole: output of the whole base (rows, length, width).
        cut: output above the cut, from the kept trunk.
        mask: (rows, length).

    Raises:
        ConfigError: they differ by more than rounding: something beside the hidden states is carried
            from layer to layer.
    """
    error = ((whole - cut).float() * mask[..., None]).norm() / (whole.float() * mask[..., None]).norm()
    if not error < 1e-2:
        raise ConfigError(
            f"train.cache-trunk: the base gives another output when cut (relative error {error.item():.1g}): "
            "its layers share more than hidden states; set it to false"
        )


class _Reached(Exception):
    """The way out of a forward pass."""

    def __init__(self, output: Any) -> None:
        self.output = output


class _Passage(nn.Module):
    """Stands in for a layer and gives a known output; what the model reads from the layer is still there."""

    def __init__(self, layer: nn.Module, output: Any) -> None:
        super().__init__()
        object.__setattr__(self, "_layer", layer)  # no submodule: its parameters are not part of this
        self.output = output

    def forward(self, *_inputs: Any, **_named: Any) -> Any:
        return self.output

    def __getattr__(self, name: str) -> Any:
        try:
            return super().__getattr__(name)
        except AttributeError:
            return getattr(object.__getattribute__(self, "_layer"), name)
