"""What the catalogue says of a rule: read off its function, its object, and a few small merges.

Nothing here is a list by hand: a new rule in `RULES` describes itself. `fedmerge rules` and docs/rules.md are
made of it.
"""

from __future__ import annotations

import inspect
import re
import sys
from collections.abc import Callable, Mapping
from dataclasses import dataclass
from typing import Any

import torch

from fedmerge.errors import RuleError
from fedmerge.rules.combine import Total
from fedmerge.rules.compose import Chain, Rule
from fedmerge.rules.presets import PRESETS
from fedmerge.rules.stack import Draw, Stack
from fedmerge.rules.stages import ElectSign
from fedmerge.rules.statistics import needs_of
from fedmerge.rules.streaming import FromSums

KINDS = {
    "elementwise": "coordinate by coordinate",
    "coefficients": "one factor for each delta, from inner products alone",
    "matrix": "on the update of each 2-D weight; other tensors get the mean",
    "factor": "on factor B of each LoRA pair; other tensors get the mean",
    "by_name": "another rule for each tensor name",
    "stages": "rules of one's own",
}
"""What each kind of rule works on."""

MOST_CLIENTS = 9
SHAPE = (3, 4)


@dataclass(frozen=True)
class Facts:
    """A rule with its default knobs.

    Args:
        name: in rule text.
        signature: with all knobs and their defaults, `ties(density=0.2, scale=1.0, ...)`.
        summary: the first line of its docstring.
        docstring: all of it.
        family: the file of the catalogue that it stands in.
        topic: what that file is about.
        kind: one of `KINDS`.
        scope: what it must see at once: "coordinate", "tensor", "adapter", or "matrix".
        needs: statistics of the silos that it wants.
        clients: how many it merges: "any", "2", "5 or more".
        streams: whether clients can be merged one after the other, without keeping them.
        linear: whether the result is a sum of the deltas with coefficients that values do not decide.
        random: whether it draws random numbers.
        sums: of how many sums over the clients it can be computed exactly, so that a server that sees no
            more (secure aggregation) can do it; 0 where it can't, or where the stages do not show how.
        like: the packages whose mathematics it can have instead.
        withstands: what the docstring says of silos that send anything.
        papers: arXiv numbers.
        reference: the docstring's reference, on one line.
    """

    name: str
    signature: str
    summary: str
    docstring: str = ""
    family: str = ""
    topic: str = ""
    kind: str = "stages"
    scope: str = "tensor"
    needs: tuple[str, ...] = ()
    clients: str = "any"
    streams: bool = False
    linear: bool = False
    random: bool = False
    sums: int = 0
    like: tuple[str, ...] = ()
    withstands: str = ""
    papers: tuple[str, ...] = ()
    reference: str = ""


def facts_of(name: str, make: Callable[..., Any]) -> Facts:
    """All there is to say of a rule.

    Args:
        name: in rule text.
        make: the function of that name; one that can't be called without arguments (`chain`) has no rule yet
            to look at.

    Returns:
        The facts.

    Example:
        >>> from fedmerge.rules import ties
        >>> facts = facts_of("ties", ties)
        >>> facts.kind, facts.scope, facts.clients, facts.sums, facts.like
        ('elementwise', 'tensor', 'any', 4, ('peft', 'mergekit', 'paper'))
    """
    text = inspect.getdoc(make) or ""
    reference = section(text, "Reference")
    flat = " ".join(text.split())
    said = re.search(r"(Withstands|No client moves) .*?\.(?= |$)", flat)
    module = sys.modules.get(getattr(make, "__module__", ""))
    written: dict[str, Any] = {
        "name": name,
        "signature": signature_of(name, make),
        "summary": text.partition("\n\n")[0].replace("\n", " "),
        "docstring": text,
        "family": getattr(make, "__module__", "").rpartition(".")[2],
        "topic": (getattr(module, "__doc__", None) or "").partition("\n")[0].rstrip("."),
        "like": tuple(like for rule, like in PRESETS if rule == name),
        "withstands": said.group(0) if said else "",
        "papers": tuple(dict.fromkeys(re.findall(r"arXiv[: ](\d+\.\d+)", reference))),
        "reference": reference,
    }
    try:
        rule = make()
    except (RuleError, TypeError):
        return Facts(**written)
    return Facts(**written, **_measured(rule))


def signature_of(name: str, make: Callable[..., Any]) -> str:
    """The rule's call with all knobs and their defaults.

    Example:
        >>> from fedmerge.rules import chain, dare
        >>> signature_of("dare", dare), signature_of("chain", chain)
        ('dare(density=0.5, scale=1.0, like=None)', 'chain(stages, ...)')
    """
    shown = []
    for knob in inspect.signature(make).parameters.values():
        if knob.kind is inspect.Parameter.VAR_POSITIONAL:
            shown.append(f"{knob.name}, ...")
        elif knob.default is inspect.Parameter.empty:
            shown.append(knob.name)
        else:
            shown.append(
                f"{knob.name}={str(knob.default) if isinstance(knob.default, Rule) else repr(knob.default)}"
            )
    return f"{name}({', '.join(shown)})"


def section(text: str, title: str) -> str:
    r"""The text of one section of a Google docstring, on one line.

    Example:
        >>> from fedmerge.rules import uniform
        >>> section(inspect.getdoc(uniform), "Returns")
        'The rule.'
    """
    _, found, rest = text.partition(f"{title}:\n")
    if not found:
        _, found, rest = text.partition(f"{title}s:\n")
    lines: list[str] = []
    for line in rest.splitlines():
        if line.strip() and not line.startswith(" "):
            break
        lines.append(line.strip())
    return " ".join(filter(None, lines))


def _measured(rule: Rule) -> Mapping[str, Any]:
    """What the rule's object says, and what small merges show."""
    return {
        "kind": rule.kind,
        "scope": _scope(rule),
        "needs": tuple(sorted(needs_of(rule))),
        "clients": _clients(rule),
        "streams": bool(getattr(rule, "streams", False)),
        "linear": rule.linear(torch.ones(2, dtype=torch.float64)) is not None,
        "random": _random(rule),
        "sums": _sums(rule),
    }


def _scope(rule: Rule) -> str:
    if rule.kind in ("matrix", "factor"):
        return "matrix"
    return "coordinate" if rule.separable and rule.scope == "tensor" else rule.scope


def _merged(rule: Rule, clients: int, seed: int = 0) -> torch.Tensor:
    """A merge of a few small numbers."""
    count = SHAPE[0] * SHAPE[1]
    values = torch.randn(clients, count, generator=torch.Generator().manual_seed(clients))
    statistics = {"fisher": torch.ones(clients, count)} if "fisher" in needs_of(rule) else {}
    stack = Stack(values, torch.ones(clients, 1, dtype=torch.float64), statistics)
    return rule(stack, Draw(seed, 0, tuple(f"silo-{i}" for i in range(clients)), "x", SHAPE))


def _takes(rule: Rule, clients: int) -> bool:
    try:
        _merged(rule, clients)
    except RuleError:
        return False
    return True


def _clients(rule: Rule) -> str:
    """The numbers of clients that the rule merges, a single one apart, which many give back as it came."""
    taken = [clients for clients in range(2, MOST_CLIENTS + 1) if _takes(rule, clients)]
    if not taken:
        return "none"
    fewest, most = taken[0], taken[-1]
    if most < MOST_CLIENTS:
        return str(fewest) if fewest == most else f"{fewest} to {most}"
    return "any" if fewest == 2 else f"{fewest} or more"


def _random(rule: Rule) -> bool:
    clients = next((n for n in range(2, MOST_CLIENTS + 1) if _takes(rule, n)), 0)
    return bool(clients) and not torch.equal(_merged(rule, clients, seed=0), _merged(rule, clients, seed=1))


def _sums(rule: Rule) -> int:
    """1 for a weighted sum, 2 where weights differ by coordinate, 4 or 6 for an election.

    In an election each client sends the positive and the negative part of `w t`, and its weight where it has
    either; for `total()` a 1 where it has either, too.
    """
    if not isinstance(rule, Chain):
        return int(getattr(rule, "sums", 0))
    if rule.streams:
        return 2 if rule.needs else 1
    elects = [stage for stage in rule.stages if stage.phase == "elect"]
    before = [stage for stage in rule.stages if stage.phase in ("weigh", "sparsify")]
    combine = next(stage for stage in rule.stages if stage.phase == "combine")
    apart = all(getattr(stage, "per_client", False) and stage.scope == "tensor" for stage in before)
    by_sign = len(elects) == 1 and isinstance(elects[0], ElectSign)
    if not (apart and by_sign and isinstance(combine, FromSums)):
        return 0
    return 6 if isinstance(combine, Total) else 4
