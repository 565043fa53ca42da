"""Which linear modules of a base carry an adapter."""

from __future__ import annotations

from collections.abc import Iterable, Iterator, Sequence
from dataclasses import dataclass

from torch import nn
from transformers import PreTrainedModel
from transformers.pytorch_utils import Conv1D

from fedmerge.errors import ConfigError
from fedmerge.silo.settings import LoraSettings


@dataclass(frozen=True)
class Stack:
    """The base's list of transformer layers.

    Args:
        name: of the module list, such as "model.layers".
        layers: the list itself.
    """

    name: str
    layers: nn.ModuleList

    def index_of(self, module: str) -> int | None:
        """The number of the layer that a module lies in; None where it lies outside.

        Example:
            >>> Stack("model.layers", nn.ModuleList()).index_of("model.layers.3.mlp.up_proj")
            3
        """
        prefix = f"{self.name}."
        return int(module.removeprefix(prefix).partition(".")[0]) if module.startswith(prefix) else None


def layer_stack(model: nn.Module) -> Stack | None:
    """The one list of layers that holds linear modules; None where there is none, or more than one."""
    found: list[Stack] = []
    for name, module in model.named_modules():
        nested = any(name.startswith(f"{stack.name}.") for stack in found)
        if isinstance(module, nn.ModuleList) and not nested and any(_linears(module)):
            found.append(Stack(name, module))
    return found[0] if len(found) == 1 else None


def target_modules(model: PreTrainedModel, settings: LoraSettings) -> tuple[str, ...]:
    """Full names of the modules to adapt, in the base's order.

    "all-linear" stands for every linear module in the layers, and, in a base without one list of
    layers, for every one but the output embedding. Names match as in PEFT: the whole name, or its end
    after a dot.

    Raises:
        ConfigError: a name or a layer number matches nothing.
    """
    stack = layer_stack(model)
    output = model.get_output_embeddings()
    names = [name for name, module in _linears(model) if module is not output]
    if stack is not None:
        names = [name for name in names if stack.index_of(name) is not None]
    if settings.layers != "all":
        kept = _layer_numbers(settings, stack)
        names = [name for name in names if stack is not None and stack.index_of(name) in kept]
    if settings.target_modules == "all-linear":
        wanted = names
    else:
        asked = [part.strip() for part in settings.target_modules.split(",") if part.strip()]
        _check_matches(asked, names)
        wanted = [name for name in names if _matches(name, asked)]
    if not wanted:
        raise ConfigError("lora.target-modules = 'all-linear': the base has no linear module")
    return tuple(wanted)


def linear_shape(module: nn.Module) -> tuple[int, int]:
    """(outputs, inputs) of a linear module, whatever way its weight is stored."""
    if isinstance(module, Conv1D):
        return module.nf, module.nx
    assert isinstance(module, nn.Linear)
    return module.out_features, module.in_features


def _linears(model: nn.Module) -> Iterator[tuple[str, nn.Module]]:
    return ((name, m) for name, m in model.named_modules() if isinstance(m, nn.Linear | Conv1D))


def _matches(name: str, asked: Iterable[str]) -> bool:
    return any(name == part or name.endswith(f".{part}") for part in asked)


def _check_matches(asked: Sequence[str], names: Sequence[str]) -> None:
    for part in asked or [""]:
        if not any(_matches(name, [part]) for name in names):
            known = ", ".join(sorted({name.rpartition(".")[2] for name in names}))
            raise ConfigError(
                f"lora.target-modules: {part!r} matches no linear module of the base's layers; "
                f"there are: {known}"
            )


def _layer_numbers(settings: LoraSettings, stack: Stack | None) -> set[int]:
    if stack is None:
        raise ConfigError(
            f"lora.layers = {settings.layers!r}: the base has no single list of layers; use 'all'"
        )
    count = len(stack.layers)
    if settings.layers.startswith("top "):
        chosen = list(range(count - int(settings.layers.removeprefix("top ")), count))
    else:
        chosen = [int(part) for part in settings.layers.split(",")]
    if not 0 <= min(chosen) <= max(chosen) < count:
        raise ConfigError(f"lora.layers = {settings.layers!r}: the base has {count} layers, 0 to {count - 1}")
    return set(chosen)
