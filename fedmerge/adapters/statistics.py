"""What the silos measured besides their deltas, for rules that need it: checked, and taken to each tensor.

`merge(..., statistics=[{"fisher": {tensor: values}, "gram": {module: matrix}}, ...])`, one for each delta.
"""

from __future__ import annotations

from collections.abc import Callable, Mapping, Sequence
from typing import TYPE_CHECKING

import torch
from torch import Tensor

from fedmerge.adapters.adapter import Adapter
from fedmerge.adapters.checks import check_finite
from fedmerge.adapters.pairs import B_SUFFIX
from fedmerge.errors import AdapterMismatch, RuleError, nearest
from fedmerge.rules import Rule, resolve
from fedmerge.rules.statistics import FISHER, GRAM, STATISTICS, needs_of

if TYPE_CHECKING:
    from fedmerge.adapters.spaces import Space

Statistics = Mapping[str, Mapping[str, Tensor]]
"""One silo's: name of the statistic -> name of the tensor or module -> values."""

ASYMMETRY = 1e-4
"""What rounding may do to a Gram matrix, as a share of its largest value."""


def check_needs(rule: Rule, space: Space) -> None:
    """Refuse a rule that needs statistics in a space that they do not belong to.

    Raises:
        RuleError: the rule needs statistics of the factors, and the space works on something else; or
            statistics that nobody measures.
    """
    needs = needs_of(rule)
    for name in needs - STATISTICS.keys():
        raise RuleError(f"{rule} needs {name!r}, which no silo measures; {nearest(name, STATISTICS)}")
    if needs and not getattr(space, "statistics", False):
        listed = " and ".join(STATISTICS[name] for name in sorted(needs))
        raise RuleError(
            f"{rule} needs {listed}, which belongs to the LoRA factors: it works in factors(), not in {space}"
        )


def check_given(rule: Rule, statistics: Sequence[Statistics] | None, count: int) -> Sequence[Statistics]:
    """One mapping for each delta, with the statistics that the rule needs and no others.

    Raises:
        RuleError: none are given to a rule that needs some, or of the wrong number or kind.
    """
    needs = needs_of(rule)
    if statistics is None:
        if needs:
            listed = " and ".join(f"{name!r} ({STATISTICS[name]})" for name in sorted(needs))
            raise RuleError(f"{rule} needs statistics of each silo, and none were given: {listed}")
        return [{}] * count
    if isinstance(statistics, Mapping) or len(statistics) != count:
        given = "a single mapping" if isinstance(statistics, Mapping) else f"{len(statistics)} mappings"
        raise RuleError(f"statistics: {given} for {count} deltas, expected one mapping for each")
    for position, given_one in enumerate(statistics):
        for name in given_one:
            if name not in STATISTICS:
                raise RuleError(
                    f"statistics {position}: {name!r} is unknown; {nearest(str(name), STATISTICS)}"
                )
            if name not in needs:
                raise RuleError(f"statistics {position}: {rule} needs no {name!r}")
    return statistics


def check_statistics(
    rule: Rule, model: Adapter, statistics: Mapping[str, Statistics], *, finite: bool = False
) -> None:
    """Hold each client's statistics against the adapter's tensors.

    Args:
        rule: says what is needed, by tensor name where it differs.
        model: names and shapes of the tensors.
        statistics: what to call a client -> its statistics.
        finite: their values are known to be good, and are not read.

    Raises:
        AdapterMismatch: something is missing, of another shape, negative, or NaN or Inf; the sentence names
            client and tensor.
    """
    wanted = {statistic: _wanted_of(rule, model, statistic) for statistic in sorted(needs_of(rule))}
    for label, given in statistics.items():
        for statistic, shapes in wanted.items():
            check_shapes(label, statistic, given.get(statistic), shapes)
            for name in () if finite else shapes:
                check_finite(f"{label}, {statistic!r}", {name: given[statistic][name]})
                check_sign(f"{label}: the {statistic!r} of {name!r}", statistic, given[statistic][name])


def _wanted_of(rule: Rule, model: Adapter, statistic: str) -> dict[str, tuple[int, ...]]:
    """What a rule wants of a statistic: that of the tensors which it is the rule of."""
    return shapes_of(
        statistic, {n: t for n, t in model.tensors.items() if statistic in needs_of(resolve(rule, n))}
    )


def shapes_of(statistic: str, tensors: Mapping[str, Tensor]) -> dict[str, tuple[int, ...]]:
    """The shapes of a whole statistic of some tensors, by the names of tensors or modules.

    Example:
        >>> tensors = {"q.lora_A.weight": torch.zeros(2, 8), "q.lora_B.weight": torch.zeros(4, 2)}
        >>> shapes_of("gram", tensors), shapes_of("fisher", {"x": torch.zeros(3)})
        ({'q': (2, 2)}, {'x': (3,)})
    """
    if statistic == GRAM:
        factors = {name: tensor for name, tensor in sorted(tensors.items()) if name.endswith(B_SUFFIX)}
        return {n.removesuffix(B_SUFFIX): (t.shape[-1], t.shape[-1]) for n, t in factors.items()}
    return {name: tuple(tensor.shape) for name, tensor in sorted(tensors.items())}


def check_shapes(
    label: str, statistic: str, given: Mapping[str, Tensor] | None, shapes: Mapping[str, tuple[int, ...]]
) -> None:
    """Hold one statistic of one client against the shapes that it must have.

    Raises:
        AdapterMismatch: it is missing, wholly or in part, or has other shapes.
    """
    if given is None:
        raise AdapterMismatch(f"{label} has no {statistic!r} ({STATISTICS[statistic]})")
    missing = [name for name in shapes if name not in given]
    if missing:
        raise AdapterMismatch(f"{label}: the {statistic!r} lacks {missing[0]!r} and {len(missing) - 1} more")
    for name, shape in shapes.items():
        tensor = given[name]
        if tuple(tensor.shape) != shape or not tensor.is_floating_point():
            raise AdapterMismatch(
                f"{label}: the {statistic!r} of {name!r} is {tensor.dtype} of shape {tuple(tensor.shape)}, "
                f"expected floating {shape}"
            )


def check_sign(what: str, statistic: str, tensor: Tensor) -> None:
    """Refuse negative squares: a Fisher below 0, a Gram matrix that is none.

    Raises:
        AdapterMismatch: `what` begins the sentence.
    """
    if statistic == FISHER and tensor.numel() and tensor.min().item() < 0:
        negative = int((tensor < 0).sum())
        raise AdapterMismatch(
            f"{what} is negative in {negative} of {tensor.numel()} values; it is a mean of squares"
        )
    if statistic == GRAM and tensor.numel():
        gram = tensor.detach().to("cpu", torch.float64)
        slack = ASYMMETRY * gram.abs().max().item()
        if (gram - gram.T).abs().max().item() > slack:
            raise AdapterMismatch(f"{what} is not symmetric; it is a mean of x x^T")
        least = torch.linalg.eigvalsh((gram + gram.T) / 2)[0].item()
        if least < -slack:
            raise AdapterMismatch(f"{what} has the eigenvalue {least:.3g}; a mean of x x^T has none below 0")


def statistics_of(
    rule: Rule, name: str, statistics: Sequence[Statistics]
) -> dict[str, Callable[[int, int, int], Tensor]]:
    """The statistics that a rule sees with one tensor, `(client, start, stop) -> values`.

    A Gram matrix is given whole whatever the coordinates, and with a factor B only.
    """
    found: dict[str, Callable[[int, int, int], Tensor]] = {}
    needs = needs_of(resolve(rule, name))
    if FISHER in needs:
        flat = [given[FISHER][name].detach().reshape(-1) for given in statistics]
        found[FISHER] = lambda client, start, stop: flat[client][start:stop]
    if GRAM in needs and name.endswith(B_SUFFIX):
        grams = [given[GRAM][name.removesuffix(B_SUFFIX)].detach() for given in statistics]
        found[GRAM] = lambda client, start, stop: grams[client]
    return found
