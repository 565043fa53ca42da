"""What a silo is told: base, adapter, task, data, training. Checked when made, before anything is loaded.

Every message names the configuration key as the user writes it: the field `batch_size` of
`TrainSettings` is the key `train.batch-size`.
"""

from __future__ import annotations

import re
from dataclasses import dataclass
from typing import ClassVar

from fedmerge.silo import checks

DTYPES = ("float32", "bfloat16", "float16", "auto")
QUANTIZATIONS = ("none", "8bit", "4bit")
HEADS = ("label", "linear", "centroid")
SCHEDULES = ("linear", "cosine", "constant")
AUTOCASTS = ("none", "bf16", "fp16", "auto")
PARTS = ("A", "B", "head")


@dataclass(frozen=True)
class BaseSettings:
    """The frozen pretrained model.

    Args:
        model: "builtin", a folder, or a Hub id.
        dtype: of the weights in memory: float32, bfloat16, float16, or auto (as they are stored).
        quantization: none, 8bit or 4bit (the latter two need a GPU and bitsandbytes).
        fingerprint: SHA-256 that the base must have; "" takes what is found.

    Raises:
        ConfigError: a value is out of range.
    """

    section: ClassVar[str] = "base"
    model: str
    dtype: str = "float32"
    quantization: str = "none"
    fingerprint: str = ""

    def __post_init__(self) -> None:
        checks.text(self, "model")
        checks.choice(self, "dtype", DTYPES)
        checks.choice(self, "quantization", QUANTIZATIONS)
        checks.text(self, "fingerprint", empty=True)
        if self.fingerprint and not re.fullmatch(r"[0-9a-f]{64}", self.fingerprint):
            raise checks.error(self, "fingerprint", "64 hexadecimal digits (a SHA-256), or nothing")


@dataclass(frozen=True)
class LoraSettings:
    """The shape of the adapter.

    Args:
        rank: columns of B and rows of A.
        alpha: the update is multiplied by alpha / rank (rslora: alpha / sqrt rank).
        rslora: rank-stabilised scaling.
        dropout: share of inputs dropped in training, in [0, 1).
        target_modules: "all-linear", or names with commas between them.
        layers: "all", "top 2" (the two nearest the output), or numbers with commas ("0,1,5").
        private: what each silo keeps to itself and never sends, of "A", "B" and "head", with commas between.

    Raises:
        ConfigError: a value is out of range.
    """

    section: ClassVar[str] = "lora"
    rank: int = 8
    alpha: float = 16.0
    rslora: bool = False
    dropout: float = 0.0
    target_modules: str = "all-linear"
    layers: str = "all"
    private: str = ""

    def __post_init__(self) -> None:
        checks.integer(self, "rank", 1)
        checks.number(self, "alpha", above=0.0)
        checks.switch(self, "rslora")
        checks.number(self, "dropout", least=0.0, below=1.0)
        checks.text(self, "target_modules")
        checks.text(self, "layers")
        if not re.fullmatch(r"all|top [1-9]\d*|\d+(\s*,\s*\d+)*", self.layers):
            raise checks.error(self, "layers", "'all', 'top 2' or layer numbers such as '0,1,5'")
        checks.text(self, "private", empty=True)
        if sorted(self.private_parts) != sorted(set(self.private_parts) & set(PARTS)):
            raise checks.error(self, "private", "'A', 'B' and 'head', each at most once, or nothing")

    @property
    def private_parts(self) -> tuple[str, ...]:
        """The entries of `private`."""
        return tuple(filter(None, (part.strip() for part in self.private.split(","))))


@dataclass(frozen=True)
class TaskSettings:
    """What is learnt.

    Args:
        kind: "causal-lm", "classification", or a name in the entry point group fedmerge.tasks.
        head: of a classification: "label" (cosine with the label's name, nothing trained), "linear" (trained
            and merged) or "centroid" (cosine with the mean of the label's rows).

    Raises:
        ConfigError: a value is unknown.
    """

    section: ClassVar[str] = "task"
    kind: str = "causal-lm"
    head: str = "label"

    def __post_init__(self) -> None:
        checks.text(self, "kind")
        checks.text(self, "head")
        if self.kind in ("causal-lm", "classification"):  # a custom task has heads of its own
            checks.choice(self, "head", HEADS)


@dataclass(frozen=True)
class DataSettings:
    """Where rows come from and how they are cut into silos and splits.

    Args:
        source: "builtin", a file, a folder with train/validation/test files, a Hub id ("id" or
            "id:config"), or "entry:name" (entry point group fedmerge.data).
        text: column of the text.
        label: column of the label, "" without one.
        labels: all labels: "a,b,c", or the path of a text or JSON file; "" takes those of the silos.
        partition: how rows become silos, such as "dirichlet(alpha=0.1, silos=10)"; "" only for the
            built-in source and entry points, which know their silos.
        silos: names of the silos to keep, with commas between them; "" keeps all (of the built-in
            source: the default four).
        validation: share of the train rows cut off where the source has no validation split, in [0, 1).
        test: the same for the test split.
        rows_per_label: train rows kept of each label, over all silos together; 0 keeps all.
        max_rows: train rows kept of each silo; 0 keeps all.
        messages: column of chat records, each a list of {role, content}.
        prompt: column of the prompt, which is not learnt; goes with `completion`.
        completion: column of the completion.
        seed: decides splits, partition, choice and order of rows.
        server: source of the rows that the server scores on, "" without any; silos don't use it.

    Raises:
        ConfigError: a value is out of range, or columns contradict each other.
    """

    section: ClassVar[str] = "data"
    source: str
    text: str = "text"
    label: str = ""
    labels: str = ""
    partition: str = ""
    silos: str = ""
    validation: float = 0.1
    test: float = 0.2
    rows_per_label: int = 0
    max_rows: int = 0
    messages: str = ""
    prompt: str = ""
    completion: str = ""
    seed: int = 0
    server: str = ""

    def __post_init__(self) -> None:
        checks.text(self, "source")
        columns = ("text", "label", "messages", "prompt", "completion")
        for name in (*columns, "labels", "partition", "silos", "server"):
            checks.text(self, name, empty=True)
        checks.number(self, "validation", least=0.0, below=1.0)
        checks.number(self, "test", least=0.0, below=1.0)
        if self.validation + self.test >= 1:
            raise checks.error(self, "validation", f"less than 1 together with data.test = {self.test}")
        checks.integer(self, "rows_per_label", 0)
        checks.integer(self, "max_rows", 0)
        checks.integer(self, "seed", 0)
        self._check_columns()

    def _check_columns(self) -> None:
        texts = {"text": self.text, "prompt": self.prompt, "completion": self.completion}
        for name, column in texts.items():
            if self.label and self.label == column:
                raise checks.error(
                    self, "label", f"another column than data.{name}: labels are told, texts are not"
                )
        if bool(self.prompt) != bool(self.completion):
            raise checks.error(
                self, "prompt", f"both it and data.completion ({self.completion!r}), or neither"
            )
        if self.messages and self.prompt:
            raise checks.error(self, "messages", f"either it or data.prompt ({self.prompt!r}), not both")
        if self.rows_per_label and not self.label:
            raise checks.error(self, "rows_per_label", "0, or a label column named by data.label")


@dataclass(frozen=True)
class TrainSettings:
    """How a silo trains.

    Args:
        epochs: passes over the silo's rows in a round. At most one of epochs and steps is above 0.
        steps: optimizer steps in a round.
        batch_size: rows (packed: sequences) of one forward pass.
        accumulate: forward passes of one optimizer step.
        learning_rate: highest of the schedule.
        schedule: linear, cosine (both down to 0 in each round) or constant.
        warmup: share of the round's steps over which the rate rises, in [0, 1).
        weight_decay: of AdamW.
        max_gradient_norm: gradients are clipped to it; 0 clips nothing.
        max_length: tokens of a sequence.
        packing: whether a causal-lm fills sequences with several rows of text.
        autocast: none, bf16, fp16, or auto (bf16 where the device has it).
        checkpointing: recompute activations in the backward pass, to save memory.
        proximal: FedProx's mu: adds mu / 2 * |adapter - received|^2 to the loss.
        cache_trunk: compute the frozen layers below the adapter once for each row.
        threads: of torch, in the thread that trains.
        device: auto, cpu, cuda or cuda:N.
        evaluation_batch_size: rows of one forward pass without gradients.
        statistics_rows: rows (packed: sequences) that Fisher or Gram matrices are measured on, where the
            server's rule needs them; 0 takes all.

    Raises:
        ConfigError: a value is out of range.
    """

    section: ClassVar[str] = "train"
    epochs: int = 0
    steps: int = 0
    batch_size: int = 8
    accumulate: int = 1
    learning_rate: float = 1e-3
    schedule: str = "linear"
    warmup: float = 0.0
    weight_decay: float = 0.0
    max_gradient_norm: float = 1.0
    max_length: int = 256
    packing: bool = True
    autocast: str = "none"
    checkpointing: bool = False
    proximal: float = 0.0
    cache_trunk: bool = False
    threads: int = 1
    device: str = "auto"
    evaluation_batch_size: int = 32
    statistics_rows: int = 64

    def __post_init__(self) -> None:
        for name in ("epochs", "steps", "statistics_rows"):
            checks.integer(self, name, 0)
        for name in ("batch_size", "accumulate", "max_length", "threads", "evaluation_batch_size"):
            checks.integer(self, name, 1)
        for name in ("weight_decay", "max_gradient_norm", "proximal"):
            checks.number(self, name, least=0.0)
        for name in ("packing", "checkpointing", "cache_trunk"):
            checks.switch(self, name)
        checks.number(self, "learning_rate", above=0.0)
        checks.number(self, "warmup", least=0.0, below=1.0)
        checks.choice(self, "schedule", SCHEDULES)
        checks.choice(self, "autocast", AUTOCASTS)
        checks.text(self, "device")
        if not re.fullmatch(r"auto|cpu|cuda(:\d+)?", self.device):
            raise checks.error(self, "device", "auto, cpu, cuda or cuda:N")
        if self.epochs and self.steps:
            raise checks.error(
                self, "epochs", f"0 where train.steps ({self.steps}) is above 0: one of the two counts"
            )


@dataclass(frozen=True)
class SiloSettings:
    """Everything a silo is told, apart from an order of the server.

    Args:
        base: the pretrained model.
        lora: the adapter's shape.
        task: what is learnt.
        data: rows, splits and silos.
        train: how a silo trains.
        seed: of the run; decides the initial adapter, dropout and the order of batches.

    Raises:
        ConfigError: the settings contradict each other.
    """

    section: ClassVar[str] = "run"
    base: BaseSettings
    lora: LoraSettings
    task: TaskSettings
    data: DataSettings
    train: TrainSettings
    seed: int = 0

    def __post_init__(self) -> None:
        checks.integer(self, "seed", 0)
        if self.task.kind == "classification" and not self.data.label:
            expected = "the column of the label, since task.kind = 'classification'"
            raise checks.error(self.data, "label", expected)
        self._check_private()

    def _check_private(self) -> None:
        """Refuse a private head where none trains, and parts that leave nothing to share."""
        parts, task = self.lora.private_parts, self.task
        headless = task.kind == "causal-lm" or (task.kind == "classification" and task.head != "linear")
        if "head" in parts and headless:
            which = f"task.kind = {task.kind!r}, task.head = {task.head!r}"
            raise checks.error(self.lora, "private", f"no 'head': none trains with {which}")
        if {"A", "B"} <= set(parts) and (headless or "head" in parts):
            raise checks.error(self.lora, "private", "parts that leave something to share: 'A' or 'B' alone")
