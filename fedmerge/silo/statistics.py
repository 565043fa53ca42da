"""What a silo measures of its trained adapter, for rules that need it: its diagonal Fisher, Grams of A x."""

from __future__ import annotations

from collections.abc import Callable, Iterator, Mapping
from contextlib import contextmanager
from dataclasses import dataclass

import torch
from torch import Tensor, nn

from fedmerge.errors import ConfigError, nearest
from fedmerge.rules.statistics import FISHER, GRAM
from fedmerge.silo.lora import AdaptedModel
from fedmerge.silo.order import Order
from fedmerge.silo.seeding import derive
from fedmerge.silo.settings import TrainSettings
from fedmerge.silo.split import Split
from fedmerge.silo.tasks import Batch, Task

HALF_SCALE = 1024.0
"""What a loss is multiplied by before it goes back in float16, where gradients below 6e-8 vanish."""

_FACTOR = ".lora_A.default"  # PEFT's name of the module that computes A x


@dataclass(frozen=True)
class Measured:
    """A model that holds what it was trained to, and the rows to measure it on.

    Args:
        model: trained.
        task: gives the loss.
        split: the silo's training rows.
        settings: how many rows, and of one forward pass.
        order: names the place of an error, and seeds the choice of rows.
        began: `time.monotonic()` at which the order's clock started; after its deadline no further rows are
            measured, but for the first.
    """

    model: AdaptedModel
    task: Task
    split: Split
    settings: TrainSettings
    order: Order
    began: float

    def rows(self) -> list[int]:
        """Numbers of the rows that are measured: at most `statistics_rows`, drawn anew in each round."""
        order = self.order
        generator = torch.Generator().manual_seed(
            derive(order.seed, order.round, order.silo, order.stream, "statistics")
        )
        rows: list[int] = torch.randperm(len(self.split.examples), generator=generator).tolist()
        return rows[: self.settings.statistics_rows or len(rows)]

    def batches(self, size: int) -> Iterator[Batch]:
        """The rows in batches, until the deadline."""
        rows = self.rows()
        for start in range(0, len(rows), size):
            if start and self.order.late(self.began):
                return
            yield self.split.batch(rows[start : start + size])


def measure(measured: Measured) -> dict[str, dict[str, Tensor]]:
    """All statistics that the order asks for, by their names, in float32 on the CPU.

    Dropout is off, and the model is left as it was.

    Raises:
        ConfigError: a statistic that is not known here, or that is not finite.
    """
    ways: Mapping[str, Callable[[Measured], dict[str, Tensor]]] = {FISHER: fisher, GRAM: grams}
    for name in measured.order.statistics:
        if name not in ways:
            raise ConfigError(
                f"{measured.order.place}: the server asks for the statistic {name!r}, which the fedmerge of "
                f"this silo can't measure; {nearest(name, ways)}"
            )
    measured.model.train(False)
    found = {name: ways[name](measured) for name in measured.order.statistics}
    for name, values in found.items():
        for key, tensor in values.items():
            if not bool(tensor.isfinite().all()):
                raise ConfigError(f"{measured.order.place}: the {name!r} of {key!r} is not finite")
    return found


def fisher(measured: Measured) -> dict[str, Tensor]:
    """The diagonal of the empirical Fisher: squares of the log-likelihood's gradient, mean over rows.

    The likelihood is of a whole row (packed: of a sequence) and of the targets that the silo has, where the
    paper's is an expectation over the model's own answers; only the loss is asked of a task. Each row goes
    back by itself: the square of a batch's mean gradient would be another, smaller thing.

    Returns:
        By the name of each tensor that trains, values from 0 of its shape.

    Reference:
        Matena, Raffel, Merging Models with Fisher-Weighted Averaging, 2021, arXiv 2111.09832.
        Kunstner, Balles, Hennig, Limitations of the Empirical Fisher Approximation, 2019, arXiv 1905.12558.
    """
    parameters = measured.model.parameters
    scale = HALF_SCALE if measured.model.autocast is torch.float16 else 1.0
    squares = {name: torch.zeros_like(parameter.detach()) for name, parameter in parameters.items()}
    rows = 0
    for batch in measured.batches(1):
        loss = scale * measured.task.loss(measured.model, batch)
        gradients = torch.autograd.grad(loss, list(parameters.values()), allow_unused=True)
        for square, gradient in zip(squares.values(), gradients, strict=True):
            if gradient is not None:
                square.add_((gradient / scale).square())
        rows += 1
    return {name: (square / max(1, rows)).cpu().float() for name, square in squares.items()}


@torch.no_grad()
def grams(measured: Measured) -> dict[str, Tensor]:
    """The Gram matrix of what each B is fed: the mean of (A x)(A x)^T over the rows' tokens.

    Returns:
        By the name of each LoRA module, `(rank, rank)`.
    """
    sums: dict[str, Tensor] = {}
    counts: dict[str, int] = {}
    for batch in measured.batches(measured.settings.evaluation_batch_size):
        with _watched(measured.model.network, batch.mask, sums, counts):
            measured.model.run(batch)
    return {module: (total / counts[module]).cpu().float() for module, total in sums.items()}


@contextmanager
def _watched(
    network: nn.Module, mask: Tensor, sums: dict[str, Tensor], counts: dict[str, int]
) -> Iterator[None]:
    """Add up, in float64, what every A gives while the network runs; padding is left out."""

    def watch(module: str) -> Callable[[nn.Module, object, Tensor], None]:
        def add(_module: nn.Module, _inputs: object, output: Tensor) -> None:
            rows = _tokens(output.detach(), mask).to(torch.float32)
            gram = (rows.T @ rows).to(torch.float64)
            sums[module] = sums[module] + gram if module in sums else gram
            counts[module] = counts.get(module, 0) + max(1, len(rows))

        return add

    handles = [
        factor.register_forward_hook(watch(name.removesuffix(_FACTOR)))
        for name, factor in network.named_modules()
        if name.endswith(_FACTOR)
    ]
    try:
        yield
    finally:
        for handle in handles:
            handle.remove()


def _tokens(output: Tensor, mask: Tensor) -> Tensor:
    """The rows of an output that belong to tokens, `(tokens, rank)`; all where it is not of tokens."""
    if output.shape[:-1] == mask.shape:
        return output[mask.bool()]
    return output.reshape(-1, output.shape[-1])
