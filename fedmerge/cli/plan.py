"""`--dry-run`: what a simulation would train, send and need, found out without training anything."""

from __future__ import annotations

import math
import shutil
from collections.abc import Mapping
from dataclasses import asdict, dataclass, replace
from pathlib import Path
from typing import TYPE_CHECKING, Any

from fedmerge.cli.base import Shape, find_base, shape_of
from fedmerge.cli.checks import existing_parent, memory_bytes
from fedmerge.cli.manner import count, size

if TYPE_CHECKING:
    from rich.console import RenderableType
    from rich.table import Table

    from fedmerge.adapters import Adapter
    from fedmerge.config import Config
    from fedmerge.silo.settings import TrainSettings

_ENCODED_BYTES = {"exact": 0, "bf16": 2, "fp16": 2}  # of a value on its way up; 0 = as the adapter holds it
_RUNTIME_BYTES = 1 << 30  # Python with torch, transformers and Flower loaded: 0.4 to 1 GB
_ACTIVATIONS_PER_LAYER = (
    34  # values kept per token and hidden unit: Korthikanti et al. 2022, arXiv 2205.05198
)


@dataclass(frozen=True)
class SiloPlan:
    """What one silo holds, and its optimizer steps in a round; None where only training itself would tell."""

    name: str
    train: int
    validation: int
    test: int
    steps: int | None


@dataclass(frozen=True)
class Traffic:
    """What travels in a round, in bytes over all silos, the adapter that does, and what a silo keeps.

    Shadows go down only.
    """

    tensors: int
    parameters: int
    adapter_bytes: int
    down_bytes: int
    up_bytes: int
    shadow_bytes: int = 0
    private_parameters: int = 0


@dataclass(frozen=True)
class Needs:
    """What must be there: estimates where it says so."""

    base: str
    device: str
    workers: int
    memory_bytes: int
    memory_there_bytes: int
    disk_bytes: int
    disk_free_bytes: int


@dataclass(frozen=True)
class Plan:
    """All of it."""

    run: Mapping[str, Any]
    silos: tuple[SiloPlan, ...]
    traffic: Traffic
    needs: Needs

    def payload(self) -> dict[str, Any]:
        """As `--json` writes it."""
        return {
            "dry_run": True,
            "run": self.run,
            "silos": [asdict(silo) for silo in self.silos],
            "traffic": asdict(self.traffic),
            "needs": asdict(self.needs),
        }

    def shown(self) -> list[RenderableType]:
        """As a person reads it."""
        run, sent, needs = self.run, self.traffic, self.needs
        memory = _enough(needs.memory_bytes, needs.memory_there_bytes)
        disk = _enough(needs.disk_bytes, needs.disk_free_bytes)
        down, up = size(sent.down_bytes), size(sent.up_bytes)
        return [
            f"Train {count(run['rounds'], 'round')}, {run['amount']} a round at each silo",
            _silo_table(self.silos),
            f"Merge by {run['rule']} in {run['space']}; baselines: {run['baselines'] or 'none'}",
            "",
            f"Send {size(sent.adapter_bytes)}: {sent.tensors} tensors, {sent.parameters:,} parameters",
            f"  a round, {down} down to and {up} up from {count(run['sampled'], 'silo')}",
            *[f"  and {size(sent.shadow_bytes)} down for the scores of shadows"] * bool(sent.shadow_bytes),
            *(
                [f"  {run['private']} stays: {sent.private_parameters:,} parameters"]
                if run["private"]
                else []
            ),
            "",
            "Need",
            f"  base    {needs.base}",
            f"  device  {needs.device}, {count(needs.workers, 'silo')} at a time",
            f"  memory  about {memory}",
            f"  disk    about {disk}",
            f"  folder  {run['folder']}",
        ]


def make(config: Config) -> Plan:
    """Find out what a run of `config` would do.

    Raises:
        FedMergeError: the data, or the base's configuration, is not there; a rule that can't merge so many
            silos, a tracker that can't be used.
    """
    from fedmerge.server.asking import quorum_of
    from fedmerge.server.plan import Plan as Strategies
    from fedmerge.server.sampling import sample
    from fedmerge.server_app.trackers import trackers
    from fedmerge.silo.data import agreed_labels, load_silos
    from fedmerge.silo.lora import initial_adapter
    from fedmerge.silo.private import check_parts, shared_part
    from fedmerge.silo.worker import Worker

    trackers(config)
    cards = Worker(config.silo, load_silos(config.silo.data)).cards()
    found = find_base(config.silo.base)
    adapter = initial_adapter(config.silo, agreed_labels(config.silo.data, cards))
    parts = config.silo.lora.private_parts
    check_parts(adapter, parts)
    shared = shared_part(adapter, parts)
    names = [card["name"] for card in cards]
    asked = sample(names, config.strategy.fraction, seed=config.run.seed, round=1)
    sampled = len(asked)
    strategies = Strategies.of(config.strategy)
    strategies.check_names(asked)
    strategies.check_clients(sampled, quorum_of(sampled, config.strategy.quorum))
    traffic = replace(
        traffic_of(shared, sampled, config.wire.encoding, strategies.needs),
        private_parameters=adapter.parameters - shared.parameters,
    )
    if config.strategy.shadow_scoring == "silos" and strategies.shadows:
        scored = 1 + len(strategies.shadows)  # the merged adapter beside them
        traffic = replace(traffic, shadow_bytes=scored * traffic.down_bytes)
    return Plan(
        run=_run(config, sampled),
        silos=tuple(_silo_plan(config, card) for card in cards),
        traffic=traffic,
        needs=_needs(config, traffic, sampled, found),
    )


def steps_of(rows: int, train: TrainSettings, *, packed: bool) -> int | None:
    """Optimizer steps of a silo in a round; None where rows are packed into sequences, still uncounted.

    Example:
        >>> from fedmerge.silo.settings import TrainSettings
        >>> steps_of(100, TrainSettings(epochs=3, batch_size=8, accumulate=2), packed=False)
        21
    """
    if train.steps:
        return train.steps
    if packed:
        return None
    return train.epochs * math.ceil(math.ceil(rows / train.batch_size) / train.accumulate)


def traffic_of(adapter: Adapter, silos: int, encoding: str, needs: frozenset[str] = frozenset()) -> Traffic:
    """What a round sends, for each sampled silo: the adapter down, a delta up, and what the rule needs."""
    from fedmerge.adapters.statistics import shapes_of

    exact = sum(tensor.numel() * tensor.element_size() for tensor in adapter.tensors.values())
    width = _ENCODED_BYTES.get(encoding, 0)
    up = sum(
        tensor.numel() * min(width or tensor.element_size(), tensor.element_size())
        for tensor in adapter.tensors.values()
    )
    up += sum(4 * math.prod(shape) for name in needs for shape in shapes_of(name, adapter.tensors).values())
    return Traffic(len(adapter.tensors), adapter.parameters, exact, exact * silos, up * silos)


def memory_estimate(shape: Shape, config: Config, adapter_parameters: int, workers: int) -> int:
    """Bytes at the peak of training: the base once, then for each silo at work its optimizer and activations.

    A rough figure. A layer keeps 34 hidden + 5 heads length bytes a token in 16 bits, twice that in 32.

    Reference:
        Korthikanti et al., Reducing Activation Recomputation in Large Transformer Models, 2022, arXiv
        2205.05198.
    """
    train, length = config.silo.train, min(config.silo.train.max_length, shape.context)
    width = 1 if train.autocast in ("bf16", "fp16") else 2
    layer = width * (34 * shape.hidden + 5 * shape.heads * length)
    layers = layer + shape.layers * width * 2 * shape.hidden if train.checkpointing else shape.layers * layer
    # Logits, their softmax and its gradient, all in float32.
    logits = 12 * shape.vocabulary if config.silo.task.kind == "causal-lm" else 0
    optimizer = 16 * adapter_parameters  # value, gradient and Adam's two moments
    each = optimizer + train.batch_size * length * (layers + logits)
    return _RUNTIME_BYTES + int(shape.parameters * shape.bytes_each) + workers * each


def _run(config: Config, sampled: int) -> dict[str, Any]:
    train = config.silo.train
    amount = count(train.steps, "step") if train.steps else count(train.epochs, "epoch")
    return {
        "rounds": config.run.rounds,
        "amount": amount,
        "sampled": sampled,
        "rule": config.strategy.rule,
        "space": config.strategy.space,
        "baselines": ", ".join(config.run.baselines),
        "private": ", ".join(config.silo.lora.private_parts),
        "seed": config.run.seed,
        "folder": config.folder,
    }


def _silo_plan(config: Config, card: Mapping[str, Any]) -> SiloPlan:
    data = config.silo.data
    plain_text = config.silo.task.kind == "causal-lm" and not (data.messages or data.prompt)
    packed = plain_text and config.silo.train.packing  # chats and completions are never packed
    steps = steps_of(card["examples"], config.silo.train, packed=packed)
    return SiloPlan(card["name"], card["examples"], card["validation"], card["test"], steps)


def _needs(config: Config, traffic: Traffic, sampled: int, base: Path) -> Needs:
    from fedmerge.engine.local import workers
    from fedmerge.silo.base import pick_device

    shape = shape_of(config.silo.base, base)
    device = pick_device(config.silo.train.device)
    at_once = workers(config, sampled, device.type)
    on_gpu = device.type == "cuda"
    memory = memory_estimate(shape, config, traffic.parameters + traffic.private_parameters, at_once)
    if config.strategy.shadow_scoring == "server" and config.strategy.shadows:
        memory += int(shape.parameters * shape.bytes_each)  # the server has a base of its own
    return Needs(
        base=f"{config.silo.base.model} at {base}, {shape.parameters:,} parameters",
        device=str(device),
        workers=at_once,
        memory_bytes=memory,
        memory_there_bytes=_gpu_bytes(str(device)) if on_gpu else memory_bytes(),
        disk_bytes=_disk(config, traffic, sampled),
        disk_free_bytes=shutil.disk_usage(existing_parent(config.folder)).free,
    )


def _gpu_bytes(device: str) -> int:
    import torch

    return int(torch.cuda.get_device_properties(device).total_memory)


def _disk(config: Config, traffic: Traffic, sampled: int) -> int:
    """Each round keeps a broadcast (or as `run.keep-rounds` says), the silos' private tensors, and with
    `run.record` the deltas; the results are one adapter more, and with private tensors one for each silo.
    """
    deltas = traffic.up_bytes if config.run.record else 0
    private = 4 * traffic.private_parameters
    personal = sampled * (traffic.adapter_bytes + private) if private else 0
    rounds = kept = config.run.rounds
    if config.run.keep_rounds:  # and the first, the last good one and the best
        kept = min(rounds, config.run.keep_rounds + 3)
    written = kept * (traffic.adapter_bytes + deltas) + rounds * sampled * private
    return written + traffic.adapter_bytes + personal


def _enough(wanted: int, there: int) -> str:
    """What is wanted of what is there; 0 there where nobody knows."""
    if not there:
        return size(wanted)
    return f"{size(wanted)} of {size(there)}{': not enough' if wanted > there else ''}"


def _silo_table(silos: tuple[SiloPlan, ...]) -> Table:
    from rich.table import Table
    from rich.text import Text

    table = Table(box=None, pad_edge=False, padding=(0, 2, 0, 2))
    table.add_column("silo", overflow="fold")
    for heading in ("train", "validation", "test", "steps"):
        table.add_column(heading, justify="right")
    for silo in silos:
        counts = (silo.train, silo.validation, silo.test, silo.steps)
        table.add_row(Text(silo.name), *("?" if number is None else f"{number:,}" for number in counts))
    return table
