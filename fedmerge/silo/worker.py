"""The one facade of a silo's work: cards, training, scores. One worker in a process, one base in a worker."""

from __future__ import annotations

import logging
import threading
import time
from collections.abc import Hashable, Mapping
from dataclasses import replace
from functools import cached_property
from typing import Any

import torch

from fedmerge.adapters import Adapter
from fedmerge.errors import ConfigError, nearest
from fedmerge.silo.base import check_fingerprint, load_base, load_tokenizer, pick_device
from fedmerge.silo.data import SiloData, pooled
from fedmerge.silo.evaluation import evaluate
from fedmerge.silo.introduction import card
from fedmerge.silo.lora import AdaptedModel, initial_adapter, read_adapter, write_adapter
from fedmerge.silo.memory import Memory
from fedmerge.silo.order import Order, Trained
from fedmerge.silo.private import PersonalPart, PrivateStates, shared_statistics
from fedmerge.silo.seeding import use_deterministic_algorithms
from fedmerge.silo.settings import SiloSettings
from fedmerge.silo.split import Split
from fedmerge.silo.statistics import Measured, measure
from fedmerge.silo.tasks import Task, task_class
from fedmerge.silo.tasks.task import Scored
from fedmerge.silo.training import autocast_dtype, fit, steps_of

__all__ = ["POOLED", "Order", "Trained", "Worker"]

POOLED = "pooled"
"""The name under which all silos' rows together are served, where there is more than one silo."""

MEMORY_BYTES = 2 << 30
"""The most that is kept of encoded rows and trunks, before those unused for longest are forgotten."""

SPLITS = ("train", "validation", "test")

logger = logging.getLogger(__name__)


class Worker:
    """Trains and scores any of the silos it holds.

    The base is loaded once, at the first use. An order's result depends on the order, the broadcast, the
    silo's rows and the files of its private tensors alone, never on what else was done before. Orders are
    taken one at a time.

    Args:
        settings: of the run; the same for all silos.
        silos: the rows at hand, by silo name.
        states: where silos keep their private tensors (`lora.private`), if they have any.

    Raises:
        ConfigError: no silo, an unknown task, or a device that isn't there.
    """

    def __init__(
        self, settings: SiloSettings, silos: Mapping[str, SiloData], states: PrivateStates | None = None
    ) -> None:
        """Check what can be checked without loading anything."""
        if not silos:
            raise ConfigError("a worker needs the rows of at least one silo")
        self.settings = settings
        self._silos = dict(silos)
        self._task_class = task_class(settings.task.kind)
        self._personal = PersonalPart(settings.lora.private_parts, states)
        self._device = pick_device(settings.train.device)
        self._tasks: dict[tuple[str, ...], Task] = {}
        self._initials: dict[tuple[str, ...], Adapter] = {}
        self._splits: Memory[Split] = Memory(MEMORY_BYTES, lambda split: split.bytes)
        self._lock = threading.Lock()
        use_deterministic_algorithms()

    @cached_property
    def fingerprint(self) -> str:
        """SHA-256 of the base's weights and tokenizer; ConfigError where it isn't the configured one."""
        return check_fingerprint(self.settings.base)

    @property
    def device(self) -> str:
        """Where silos train: "cpu" or "cuda"."""
        return self._device.type

    @property
    def gpu_seen(self) -> bool:
        """Whether torch sees a GPU in this process, used or not."""
        return torch.cuda.is_available()

    def cards(self) -> list[dict[str, Any]]:
        """What the server may know of each silo: name, number of rows of each split, labels."""
        return [card(self._silos[name], self.settings.data.label) for name in sorted(self._silos)]

    def load(self) -> None:
        """Load the base now: a process that forks does so first, and all workers share its memory.

        It runs on one thread: OpenMP threads that live in a process do not survive in its forks.
        """
        torch.set_num_threads(1)
        _ = self._model

    def train(self, broadcast: Adapter, order: Order) -> Trained:
        """Score the broadcast, train from it, and give the difference.

        Args:
            broadcast: the adapter to start from; where its private tensors are missing, the silo's own
                complete it.
            order: silo, amount, seeds, splits to score on.

        Returns:
            trained minus received, of the broadcast's tensors in its dtypes, the scores of what the training
            started from, and the statistics that the order asks for.

        Raises:
            ConfigError: unknown silo, unfit rows, a loss that is not finite, an unknown statistic, or a
                broadcast that would have private tensors sent.
            AdapterMismatch: the broadcast does not fit this silo's base and adapter settings.
            CheckpointError: the silo's private tensors can't be read or written.
            PolicyError: more steps than the site allows, or the deadline is over before the first of them.
        """
        began = time.monotonic()
        with self._lock:
            order = self._begin(order)
            received = self._received(broadcast, order)
            task, rows = self._task(order.labels), self._split(order, "train")
            steps_of(rows, self.settings.train, order)  # refused, if need be, before anything is scored
            scores = self._scores({"received": received}, replace(order, outcomes=False), began)
            write_adapter(self._model, received, self._head(order))
            result = fit(self._model, task, rows, self.settings.train, order, began=began)
            if not result.steps:
                order.check_time(began)  # a delta of nothing but zeros would pull the others' mean down
            trained = read_adapter(self._model)
            measured = Measured(self._model, task, rows, self.settings.train, order, began)
            statistics = measure(measured) if order.statistics else {}
            if received is not broadcast:
                self._personal.keep(trained, order)
        delta = difference(trained, broadcast)
        metrics = {name: value for name, value in scores.items() if isinstance(value, float)}
        metrics |= {"steps": float(result.steps), "seconds": time.monotonic() - began}
        if result.steps:
            metrics["train_loss"] = result.loss
        logger.info("%s: %d steps in %.1f s", order.place, result.steps, metrics["seconds"])
        statistics = shared_statistics(statistics, self.settings.lora.private_parts)
        return Trained(delta, len(self._rows(order.silo, "train")), metrics, statistics)

    def evaluate(self, candidates: Mapping[str, Adapter], order: Order) -> Scored:
        """Scores of several adapters on the silo's held-out splits.

        Returns:
            "<candidate>/<split>/<name>" -> value; a split without rows has no scores. Lists where the order
            asks for outcomes and the task has them.

        Raises:
            ConfigError: unknown silo or unfit rows.
            AdapterMismatch: a candidate does not fit this silo's base and adapter settings.
            CheckpointError: the silo's private tensors can't be read.
            PolicyError: the deadline is over.
        """
        began = time.monotonic()
        with self._lock:
            order = self._begin(order)
            # What round r made belongs to what the silo kept in round r.
            whole = {
                name: self._personal.whole(adapter, order, order.round + 1, self._initial)
                for name, adapter in candidates.items()
            }
            return self._scores(whole, order, began)

    def _begin(self, order: Order) -> Order:
        """The order with its silo's name, after what a worker's first order has to wait for."""
        order = replace(order, silo=self._name(order.silo))
        _ = self._model
        # The number of threads changes bits, and is a matter of the thread that computes.
        torch.set_num_threads(self.settings.train.threads)
        return order

    def _received(self, broadcast: Adapter, order: Order) -> Adapter:
        """What a training starts from: baselines train whole adapters as they are, rounds the shared part."""
        received = self._personal.whole(broadcast, order, order.round, self._initial)
        if self._personal.parts and received is broadcast and not order.stream:
            raise ConfigError(
                f"{order.place}: the broadcast has private tensors (lora.private), so the delta would, too"
            )
        return received

    def _initial(self, labels: tuple[str, ...]) -> Adapter:
        if labels not in self._initials:
            self._initials[labels] = initial_adapter(self.settings, labels)
        return self._initials[labels]

    def _scores(self, candidates: Mapping[str, Adapter], order: Order, began: float) -> Scored:
        task = self._task(order.labels, order.head)
        # Another head is a reference for all silos alike: what it is made of are the rows of all.
        reference = replace(order, silo=POOLED) if order.head and len(self._silos) > 1 else order
        scores: Scored = {}
        for candidate, adapter in candidates.items():
            write_adapter(self._model, adapter, self._head(order))
            for name in order.splits:
                if not self._rows(order.silo, name):
                    continue
                held_out = self._split(order, name).spread(order.rows)
                found = evaluate(
                    self._model,
                    task,
                    held_out,
                    lambda: self._split(reference, "train"),
                    self.settings.train.evaluation_batch_size,
                    check=lambda: order.check_time(began),
                )
                scores |= {
                    f"{candidate}/{name}/{key}": value
                    for key, value in found.items()
                    if order.outcomes or not isinstance(value, list)
                }
        return scores

    @cached_property
    def _model(self) -> AdaptedModel:
        settings = self.settings
        base = load_base(settings.base, self._task_class.architecture, self._device)
        longest = getattr(base.model.config.get_text_config(), "max_position_embeddings", None)
        if longest and settings.train.max_length > longest:
            raise ConfigError(
                f"train.max-length = {settings.train.max_length}: the base takes at most {longest} tokens"
            )
        return AdaptedModel(base, settings, autocast_dtype(settings.train.autocast, self._device))

    def _task(self, labels: tuple[str, ...], head: str = "") -> Task:
        key = (head, *labels)
        if key not in self._tasks:
            task = self._task_class(with_head(self.settings, head), self._tokenizer, labels)
            task.prepare(self._model)
            self._tasks[key] = task
        return self._tasks[key]

    @cached_property
    def _tokenizer(self) -> Any:
        return load_tokenizer(self.settings.base)

    def _head(self, order: Order) -> dict[str, torch.Tensor]:
        hidden = self._model.base.config.get_text_config().hidden_size
        return self._task_class.initial_head(self.settings, hidden, order.labels)

    def _split(self, order: Order, name: str) -> Split:
        key: Hashable = (order.silo, name, order.labels)
        return self._splits.get(key, lambda: self._encode(order, name))

    def _encode(self, order: Order, name: str) -> Split:
        rows = self._rows(order.silo, name)
        try:
            examples = self._task(order.labels).encode(rows)
        except ConfigError as err:
            raise ConfigError(f"silo {order.silo!r}, {name}: {err}") from err
        split = Split(examples, self._tokenizer.pad_token_id or 0, self._model.device)
        if not self.settings.train.cache_trunk:
            return split
        return split.with_trunk(self._model, self.settings.train.evaluation_batch_size)

    def _rows(self, silo: str, split: str) -> Any:
        if split not in SPLITS:
            raise ConfigError(f"silo {silo!r}: no split {split!r}; {nearest(split, SPLITS)}")
        return getattr(
            self._pooled if silo == POOLED and silo not in self._silos else self._silos[silo], split
        )

    @cached_property
    def _pooled(self) -> SiloData:
        return pooled(self._silos)

    def _name(self, asked: str) -> str:
        """The silo an order means: "" is the only one there is."""
        if not asked and len(self._silos) == 1:
            return next(iter(self._silos))
        known = {*self._silos, *([POOLED] if len(self._silos) > 1 else [])}
        if asked not in known:
            raise ConfigError(f"no silo {asked!r} here; {nearest(asked, known)}")
        return asked


def with_head(settings: SiloSettings, head: str) -> SiloSettings:
    """The settings with another `task.head`; "" leaves it."""
    return replace(settings, task=replace(settings.task, head=head)) if head else settings


def difference(trained: Adapter, received: Adapter) -> Adapter:
    """Trained minus received, in received's dtypes; subtracted in float32, or float64 where received is.

    Example:
        >>> difference(Adapter({"a": torch.tensor([3.0])}), Adapter({"a": torch.tensor([1.0])})).tensors
        {'a': tensor([2.])}
    """
    tensors = {}
    for name, before in received.tensors.items():
        dtype = torch.float64 if before.dtype == torch.float64 else torch.float32
        tensors[name] = (trained.tensors[name].to(dtype) - before.to(dtype)).to(before.dtype)
    return Adapter(tensors, received.lora)
