"""A silo's training: AdamW on the adapter, from the broadcast, for so many epochs or steps."""

from __future__ import annotations

import math
from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass
from itertools import islice

import torch
from torch import nn

from fedmerge.errors import ConfigError, PolicyError
from fedmerge.silo.lora import AdaptedModel
from fedmerge.silo.order import Order
from fedmerge.silo.seeding import derive, seed_everything
from fedmerge.silo.settings import TrainSettings
from fedmerge.silo.split import Split
from fedmerge.silo.tasks import Batch, Task


@dataclass(frozen=True)
class Fit:
    """How a training went.

    Args:
        loss: mean over all targets seen, without the proximal term; NaN where no step was made.
        steps: optimizer steps made; fewer than asked for where the deadline came first.
    """

    loss: float
    steps: int


def fit(
    model: AdaptedModel, task: Task, split: Split, settings: TrainSettings, order: Order, *, began: float
) -> Fit:
    """Train what the model holds, in place; same seeds give the same bits, whoever trained before.

    Args:
        model: with the broadcast written into it.
        task: gives the loss.
        split: the silo's training rows.
        settings: of the training.
        order: amount, seeds and deadline.
        began: `time.monotonic()` at which the order's clock started.

    Raises:
        ConfigError: no amount of training is given, or the loss is not finite any more.
    """
    steps = steps_of(split, settings, order)
    seed_everything(order.seed, order.round, order.silo, order.stream)
    trainer = _Trainer(model, task, settings, steps)
    seed = derive(order.seed, order.round, order.silo, order.stream, "rows")
    total, count, done = 0.0, 0, 0
    model.train(True)
    try:
        for rows in islice(_steps(split, settings, seed), steps):
            if order.late(began):
                break
            batches = [split.batch(part) for part in rows]
            loss = trainer.step(batches)
            done += 1
            if not math.isfinite(loss):
                raise _diverged(order, done, f"the loss is {loss}", settings)
            total, count = total + loss, count + sum(batch.count for batch in batches)
    finally:
        model.train(False)
    if not all(bool(p.isfinite().all()) for p in model.parameters.values()):
        raise _diverged(order, done, "the adapter is not finite any more", settings)
    return Fit(total / count if count else math.nan, done)


def steps_of(split: Split, settings: TrainSettings, order: Order) -> int:
    """Optimizer steps that an order asks for.

    Raises:
        ConfigError: not exactly one of the order's epochs and steps is above 0, or there are no rows.
        PolicyError: they are more than the site allows.
    """
    if (order.epochs > 0) == (order.steps > 0):
        raise ConfigError(
            f"{order.place}: exactly one of epochs and steps must be above 0, "
            f"the order has epochs = {order.epochs} and steps = {order.steps}"
        )
    if not split.examples:
        raise ConfigError(f"{order.place}: the silo has no training rows")
    per_epoch = -(-split.batches_in_epoch(settings.batch_size) // settings.accumulate)
    steps = order.steps or order.epochs * per_epoch
    if 0 < order.max_steps < steps:
        raise PolicyError(
            f"{order.place}: {steps} optimizer steps are asked for: policy.max-steps is {order.max_steps}",
            code="policy/max-steps",
        )
    return steps


def learning_rate_share(step: int, steps: int, settings: TrainSettings) -> float:
    """The share of the highest learning rate at a step, in (0, 1].

    It rises linearly over the warm-up and then falls to 0 just after the last step, on a line or a
    cosine, or stays.

    Example:
        >>> [learning_rate_share(step, 4, TrainSettings()) for step in range(4)]
        [1.0, 0.75, 0.5, 0.25]
        >>> settings = TrainSettings(schedule="constant", warmup=0.5)
        >>> [learning_rate_share(step, 4, settings) for step in range(4)]
        [0.5, 1.0, 1.0, 1.0]
    """
    warm = math.ceil(settings.warmup * steps)
    if step < warm:
        return (step + 1) / warm
    left = (steps - step) / max(1, steps - warm)
    return {"constant": 1.0, "linear": left, "cosine": 0.5 * (1 - math.cos(math.pi * left))}[
        settings.schedule
    ]


def autocast_dtype(name: str, device: torch.device) -> torch.dtype | None:
    """The dtype of `train.autocast`; "auto" is bfloat16 where the device computes in it, else none."""
    if name == "auto":
        name = "bf16" if _computes_bf16(device) else "none"
    return {"none": None, "bf16": torch.bfloat16, "fp16": torch.float16}[name]


class _Trainer:
    """Optimizer and schedule of one order; made anew for each, so that nothing of another silo is in it."""

    def __init__(self, model: AdaptedModel, task: Task, settings: TrainSettings, steps: int) -> None:
        self._model, self._task, self._settings = model, task, settings
        self._parameters: Sequence[nn.Parameter] = list(model.parameters.values())
        self._received = [p.detach().clone() for p in self._parameters] if settings.proximal else []
        self._optimizer = torch.optim.AdamW(
            self._parameters, lr=settings.learning_rate, weight_decay=settings.weight_decay
        )
        self._steps, self._done = steps, 0
        # Gradients of float16 vanish below 6e-8: the loss is scaled up, and the gradients back.
        self._scaler = torch.amp.GradScaler(model.device.type, enabled=model.autocast is torch.float16)

    def step(self, batches: Sequence[Batch]) -> float:
        """One optimizer step on the mean over all targets of the batches; returns the loss's sum.

        Dividing by the count of all batches makes accumulation equal to one large batch, however
        targets are spread over them.
        """
        count = sum(batch.count for batch in batches)
        total = torch.zeros((), device=self._model.device)
        for batch in batches:
            loss = self._task.loss(self._model, batch)
            self._scaler.scale(loss / count).backward()  # type: ignore[no-untyped-call]  # torch leaves it unannotated
            total += loss.detach()
        self._scaler.unscale_(self._optimizer)
        self._pull()
        if self._settings.max_gradient_norm:
            nn.utils.clip_grad_norm_(self._parameters, self._settings.max_gradient_norm)
        self._set_learning_rate()
        self._scaler.step(self._optimizer)
        self._scaler.update()
        self._optimizer.zero_grad(set_to_none=True)
        return total.item()

    def _set_learning_rate(self) -> None:
        share = learning_rate_share(self._done, self._steps, self._settings)
        for group in self._optimizer.param_groups:
            group["lr"] = self._settings.learning_rate * share
        self._done += 1

    def _pull(self) -> None:
        """Add the gradient of FedProx's term, mu / 2 * |adapter - received|^2.

        Li et al., Federated Optimization in Heterogeneous Networks, 2020, arXiv 1812.06127.
        """
        for parameter, received in zip(self._parameters, self._received, strict=False):
            if parameter.grad is not None:
                parameter.grad += self._settings.proximal * (parameter.detach() - received)


def _steps(split: Split, settings: TrainSettings, seed: int) -> Iterator[list[list[int]]]:
    """Rows of the batches of one optimizer step after another, for ever; no step spans two epochs."""
    batches = split.shuffled(settings.batch_size, seed)
    per_epoch = split.batches_in_epoch(settings.batch_size)
    while True:
        epoch = islice(batches, per_epoch)
        while group := list(islice(epoch, settings.accumulate)):
            yield group


def _computes_bf16(device: torch.device) -> bool:
    if device.type == "cuda":
        return bool(torch.cuda.is_bf16_supported(including_emulation=False))
    capabilities = getattr(torch.cpu, "get_capabilities", None)  # torch 2.6 has not got it
    known: Mapping[str, object] = capabilities() if capabilities else {}
    return bool(known.get("avx512_bf16") or known.get("amx_bf16"))


def _diverged(order: Order, step: int, what: str, settings: TrainSettings) -> ConfigError:
    remedy = (
        "" if settings.autocast == "none" else f", or train.autocast = 'none' (it is {settings.autocast!r})"
    )
    return ConfigError(
        f"{order.place}, step {step}: {what}; try a lower train.learning-rate (it is "
        f"{settings.learning_rate:g}){remedy}"
    )
