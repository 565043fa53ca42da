"""What the two kinds of merge on disk have in common: the request, its kind, the recipe and the card."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from importlib import metadata
from pathlib import Path
from typing import TYPE_CHECKING, Any

from fedmerge.errors import ConfigError, WireError

if TYPE_CHECKING:
    from rich.table import Table


@dataclass(frozen=True)
class Request:
    """What `fedmerge merge` was asked for; texts as they were given."""

    models: tuple[str, ...]
    output: Path | None
    rule: str = "fedavg()"
    space: str = ""
    weights: list[float] | None = None
    names: list[str] | None = None
    base: str = ""
    seed: int = 0
    device: str = "auto"
    kernel: str = "auto"
    memory: str = ""
    missing: str = "refuse"
    extra: str = "refuse"
    tokenizer_from: str = ""
    shard_size: str = "5GB"
    dry_run: bool = False

    @property
    def shares(self) -> list[float]:
        """A weight for each model."""
        return self.weights or [1.0] * len(self.models)

    def recipe(self, **chosen: object) -> list[str]:
        """The command line that does the same again.

        Args:
            chosen: options that decided the result: name -> value; empty ones are left out.
        """
        words = ["fedmerge", "merge", *self.models, "--rule", self.rule]
        if self.weights:
            words += ["--weights", ",".join(f"{weight:g}" for weight in self.weights)]
        if self.names:
            words += ["--names", ",".join(self.names)]
        for name, value in chosen.items():
            if value:
                words += [f"--{name.replace('_', '-')}", str(value)]
        return [*words, "-o", "merged"]


def kind_of(request: Request) -> str:
    """Tell what all models are: "adapter" or "checkpoint".

    Raises:
        ConfigError: both kinds, a model that is not to be found, options of the other kind.
        WireError: a folder that is neither, or that holds a pickle only.
    """
    kinds = {model: _kind(model, request) for model in request.models}
    if len(set(kinds.values())) > 1:
        listed = ", ".join(f"{model} is {kind}" for model, kind in kinds.items())
        raise ConfigError(f"adapters and whole checkpoints do not merge with each other: {listed}")
    kind = next(iter(kinds.values()))
    if kind == "adapter":
        given: dict[str, object] = {"memory": request.memory, "tokenizer-from": request.tokenizer_from}
        given |= {"missing": request.missing != "refuse", "extra": request.extra != "refuse"}
        given |= {"shard-size": request.shard_size != "5GB"}
    else:
        given = {"space": request.space}
        if not request.base:
            raise ConfigError(
                "whole checkpoints are merged by their changes: give --base, what they were trained from"
            )
    strange = [f"--{name}" for name, value in given.items() if value]
    if strange:
        whose = {"adapter": "whole checkpoints", "checkpoint": "adapters"}[kind]
        raise ConfigError(f"{', '.join(strange)} is for {whose}, and these are {kind}s")
    return kind


def _kind(model: str, request: Request) -> str:
    from fedmerge.wire.checkpoint import WANTED, holds_checkpoint
    from fedmerge.wire.files import CONFIG_FILE, PICKLE_FILE, TENSOR_FILE
    from fedmerge.wire.folders import find_folder

    what = "checkpoint" if request.space == "" and request.memory else "adapter"
    folder = find_folder(model, what, WANTED, fetch=not request.dry_run)
    if any((folder / name).exists() for name in (CONFIG_FILE, TENSOR_FILE, PICKLE_FILE)):
        return "adapter"
    pickles = sorted(path.name for pattern in ("*.bin", "*.pt", "*.pth") for path in folder.glob(pattern))
    if holds_checkpoint(folder) or pickles:
        return "checkpoint"
    raise WireError(f"{folder} holds neither an adapter ({CONFIG_FILE}) nor a checkpoint (model.safetensors)")


def table(rows: Sequence[Sequence[str]]) -> Table:
    """Rows as a table for a terminal; the first one heads the columns."""
    from rich.table import Table

    shown = Table(box=None, padding=(0, 2, 0, 0), show_edge=False)
    for place, name in enumerate(rows[0]):
        shown.add_column(name, justify="right" if place else "left")
    for row in rows[1:]:
        shown.add_row(*row)
    return shown


def versions(*names: str) -> dict[str, str]:
    """Versions of installed packages."""
    found = {}
    for name in names:
        try:
            found[name] = metadata.version(name)
        except metadata.PackageNotFoundError:
            continue
    return found


def geometry_rows(
    labels: Sequence[str], weights: Sequence[float], columns: Mapping[str, Sequence[float]], cosines: Any
) -> list[list[str]]:
    """A row for each model: its weight, figures by column, and its mean cosine with the others."""
    rows = [["model", "weight", *columns, "mean cosine with the others"]]
    for place, (label, weight) in enumerate(zip(labels, weights, strict=True)):
        others = [value for other, value in enumerate(cosines[place]) if other != place]
        mean = f"{sum(others) / len(others):+.3f}" if others else "-"
        figures = [f"{values[place]:.4g}" for values in columns.values()]
        rows.append([label, f"{weight:g}", *figures, mean])
    return rows


def percent(share: float) -> str:
    """A share as a person reads it.

    Example:
        >>> percent(0.5), percent(0.00001), percent(0)
        ('50.0 %', '<0.1 %', '0 %')
    """
    if share <= 0:
        return "0 %"
    return "<0.1 %" if share < 0.001 else f"{100 * share:.1f} %"
