"""LoRA on the base: the first adapter, and writing adapters into the loaded model and reading them back."""

from __future__ import annotations

import hashlib
import math
import warnings
from collections.abc import Iterator, Mapping, Sequence
from contextlib import AbstractContextManager, contextmanager, nullcontext
from functools import cached_property
from typing import Any

import peft
import torch
from torch import Tensor, nn
from transformers.pytorch_utils import Conv1D

from fedmerge.adapters import Adapter, Lora
from fedmerge.errors import AdapterMismatch
from fedmerge.silo.base import Base, outline_base
from fedmerge.silo.settings import LoraSettings, SiloSettings
from fedmerge.silo.targets import linear_shape, target_modules
from fedmerge.silo.tasks import task_class
from fedmerge.silo.tasks.task import Batch
from fedmerge.silo.trunk import Cut, find_cut

PREFIX = "base_model.model."
"""What PEFT puts before a module's name in its files."""

TASK_TYPES = {"causal-lm": "CAUSAL_LM", "encoder": "FEATURE_EXTRACTION"}
"""What PEFT calls the use of a base."""


def initial_adapter(settings: SiloSettings, labels: Sequence[str] | None = None) -> Adapter:
    """The adapter that the first round broadcasts: it changes nothing yet.

    A is drawn as PEFT does, Kaiming-uniform, B is zero, a trained head is zero. No weights are loaded.
    Every tensor has its own generator, so that none depends on what other tensors there are.

    Args:
        settings: base, lora, task and seed are used.
        labels: the agreed labels, for tasks that have any.

    Returns:
        float32 tensors, named as in PEFT's files, with what PEFT's config has to tell in the metadata.

    Raises:
        ConfigError: the base isn't found, or `lora.target-modules` or `lora.layers` match nothing in it.
    """
    task = task_class(settings.task.kind)
    model = outline_base(settings.base, task.architecture)
    targets = target_modules(model, settings.lora)
    tensors: dict[str, Tensor] = {}
    for target in targets:
        outputs, inputs = linear_shape(model.get_submodule(target))
        name = f"{PREFIX}{target}.lora_A.weight"
        tensors[name] = _kaiming_uniform(settings.lora.rank, inputs, settings.seed, name)
        tensors[f"{PREFIX}{target}.lora_B.weight"] = torch.zeros(outputs, settings.lora.rank)
    hidden_size = model.config.get_text_config().hidden_size
    tensors |= task.initial_head(settings, hidden_size, labels or ())
    metadata = {"base_model": settings.base.model, "task_type": TASK_TYPES[task.architecture]}
    if _transposed(model, targets):
        metadata["fan_in_fan_out"] = "true"
    return Adapter(tensors, _lora(settings.lora, targets), metadata)


class AdaptedModel:
    """The base with one LoRA adapter on it, and the trained head beside it.

    It is made once in a process. What a silo's training changes is all in `parameters`, and
    `write_adapter` replaces all of it.

    Args:
        base: loaded, frozen.
        settings: of the silo.
        autocast: dtype of the forward pass, None for the dtype of the weights.

    Raises:
        ConfigError: the adapter's settings match nothing in the base.
    """

    def __init__(self, base: Base, settings: SiloSettings, autocast: torch.dtype | None = None) -> None:
        """Attach the adapter."""
        self.base = base.model
        self.targets = target_modules(base.model, settings.lora)
        self.lora = _lora(settings.lora, self.targets)
        self.device = next(base.model.parameters()).device
        self.autocast = autocast
        self.network = _attach(base, settings.lora, self.targets)
        self.factors = {
            name.replace(".default.", "."): parameter
            for name, parameter in self.network.named_parameters()
            if parameter.requires_grad
        }
        self.head: dict[str, nn.Parameter] = {}
        if settings.train.checkpointing:
            self.base.gradient_checkpointing_enable(gradient_checkpointing_kwargs={"use_reentrant": False})

    @property
    def parameters(self) -> dict[str, nn.Parameter]:
        """Everything that trains, by its name in the adapter."""
        return {**self.factors, **self.head}

    def run(self, batch: Batch) -> Any:
        """The base's output for a batch, under autocast; the layers below a given trunk are not computed."""
        with self.autocasting(), self._above(batch):
            return self.network(input_ids=batch.tokens, attention_mask=batch.mask)

    def train(self, training: bool) -> None:
        """Dropout on, or off."""
        self.network.train(training)

    def autocasting(self) -> torch.autocast:
        """The context of a forward pass."""
        return torch.autocast(self.device.type, dtype=self.autocast, enabled=self.autocast is not None)

    @contextmanager
    def untouched(self) -> Iterator[None]:
        """The base as if there were no adapter, without dropout and gradients."""
        self.train(False)
        with torch.no_grad(), self.network.disable_adapter():
            yield

    @cached_property
    def cut(self) -> Cut:
        """Where the frozen trunk ends; ConfigError where the base can't be cut."""
        return find_cut(self.base, self.targets)

    def _above(self, batch: Batch) -> AbstractContextManager[None]:
        return nullcontext() if batch.trunk is None else self.cut.fed(batch.trunk)


def write_adapter(model: AdaptedModel, adapter: Adapter, head: Mapping[str, Tensor]) -> None:
    """Replace everything that trains by an adapter's values; old gradients are dropped.

    The rank is the adapter's: a merge in `product(rank=k)` may have raised it above `lora.rank`.

    Args:
        model: changed in place.
        adapter: as broadcast.
        head: the task's initial head, which says what tensors of what shape are expected beside LoRA.

    Raises:
        AdapterMismatch: other names or shapes, or another LoRA scaling.
    """
    expected = {
        **{name: _of_rank(name, model.factors, adapter) for name in model.factors},
        **{n: t.shape for n, t in head.items()},
    }
    _check_fits(model, adapter, expected)
    for name, parameter in model.factors.items():
        parameter.data = adapter.tensors[name].to(parameter.device, parameter.dtype, copy=True)
        parameter.grad = None
    model.head = {
        name: nn.Parameter(adapter.tensors[name].to(model.device, torch.float32, copy=True)) for name in head
    }


def read_adapter(model: AdaptedModel) -> Adapter:
    """A copy of everything that trains, as an adapter of float32 tensors on the CPU."""
    tensors = {
        name: parameter.detach().to("cpu", torch.float32, copy=True)
        for name, parameter in model.parameters.items()
    }
    return Adapter(tensors, model.lora)


def _lora(settings: LoraSettings, targets: Sequence[str]) -> Lora:
    return Lora(settings.rank, settings.alpha, settings.rslora, tuple(targets))


def _transposed(model: nn.Module, targets: Sequence[str]) -> bool:
    """Whether weights are stored as (inputs, outputs), as GPT-2's are."""
    return any(isinstance(model.get_submodule(target), Conv1D) for target in targets)


def _kaiming_uniform(rank: int, inputs: int, seed: int, name: str) -> Tensor:
    digest = hashlib.sha256(f"{seed}\0{name}".encode()).digest()
    generator = torch.Generator().manual_seed(int.from_bytes(digest[:8], "big") >> 1)
    return nn.init.kaiming_uniform_(torch.empty(rank, inputs), a=math.sqrt(5), generator=generator)


def _attach(base: Base, settings: LoraSettings, targets: Sequence[str]) -> peft.PeftModel:
    config = peft.LoraConfig(
        r=settings.rank,
        lora_alpha=settings.alpha,
        use_rslora=settings.rslora,
        lora_dropout=settings.dropout,
        target_modules=list(targets),
        fan_in_fan_out=_transposed(base.model, targets),
    )
    with warnings.catch_warnings():
        # PEFT 0.21 reads a property that transformers 5.23 renamed.
        warnings.filterwarnings(
            "ignore", message="`is_gradient_checkpointing` is deprecated", category=FutureWarning
        )
        # The factors are float32 whatever the base's dtype: steps of AdamW are lost in bfloat16.
        network = peft.get_peft_model(base.model, config, autocast_adapter_dtype=True)
    assert isinstance(network, peft.PeftModel)
    return network.eval()


def _of_rank(name: str, factors: Mapping[str, Tensor], adapter: Adapter) -> torch.Size:
    """A factor's shape at the rank that the adapter has in this pair; A has it first, B last."""
    ours, other = factors[name].shape, name.replace(".lora_B.", ".lora_A.")
    given = adapter.tensors.get(other)
    if given is None or not len(given) or given.shape[1:] != factors[other].shape[1:]:
        return ours
    rank = len(given)
    return torch.Size((rank, *ours[1:]) if name == other else (ours[0], rank, *ours[2:]))


def _check_fits(model: AdaptedModel, adapter: Adapter, expected: Mapping[str, torch.Size]) -> None:
    tensors = adapter.tensors
    missing, strange = sorted(expected.keys() - tensors.keys()), sorted(tensors.keys() - expected.keys())
    if missing or strange:
        raise AdapterMismatch(
            f"the adapter does not fit the base: {len(missing)} tensors are missing {missing[:2]}, "
            f"{len(strange)} are unknown {strange[:2]}"
        )
    for name, shape in expected.items():
        if tensors[name].shape != shape:
            raise AdapterMismatch(
                f"{name!r} has shape {tuple(tensors[name].shape)}, the model of this silo has {tuple(shape)}"
            )
    if adapter.lora is not None and not math.isclose(adapter.lora.scaling, model.lora.scaling):
        raise AdapterMismatch(
            f"the adapter's LoRA scaling is {adapter.lora.scaling:g}, this silo is set to "
            f"{model.lora.scaling:g} (lora.alpha, lora.rank, lora.rslora)"
        )
