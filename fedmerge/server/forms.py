"""What a round's JSON tells besides its tensors, in both directions: adapters, replies, standing, reports."""

from __future__ import annotations

import dataclasses
from collections.abc import Callable, Mapping
from typing import Any

from torch import Tensor

from fedmerge.adapters import Adapter, Lora
from fedmerge.adapters.merge import MergeReport
from fedmerge.server import exact
from fedmerge.server.absence import Absence
from fedmerge.server.guard import Admitted, Refusal
from fedmerge.server.report import RoundReport
from fedmerge.server.scores import Summary
from fedmerge.server.standing import Good, Scored, Standing

Form = dict[str, Any]
_OF_REPLY = ("silo", "examples", "metrics", "norm", "device")


def adapter_form(adapter: Adapter) -> Form:
    """What a file of tensors does not tell of an adapter: their order, and the LoRA settings."""
    lora = None if adapter.lora is None else dataclasses.asdict(adapter.lora)
    return {"names": list(adapter.tensors), "lora": lora}


def adapter_of(form: Mapping[str, Any], tensors: Mapping[str, Tensor]) -> Adapter:
    """The adapter again."""
    return Adapter({name: tensors[name] for name in form["names"]}, _lora(form["lora"]))


def reply_form(reply: Admitted) -> Form:
    """What of a reply is no tensor."""
    return {name: getattr(reply, name) for name in _OF_REPLY}


def reply_of(
    form: Mapping[str, Any],
    tensors: Mapping[str, Tensor],
    statistics: Mapping[str, Mapping[str, Tensor]],
    received: Adapter,
) -> Admitted:
    """The reply again; a delta has the names, their order and the settings of what was received."""
    delta = dataclasses.replace(received, tensors={name: tensors[name] for name in received.tensors})
    return Admitted(delta=delta, statistics=statistics, **form)


def standing_form(standing: Standing, broadcast: Adapter) -> Form:
    """Which rounds made the last good broadcast and the best one, and by which scores."""
    good, best = standing.good, standing.best
    judged = good and {
        "round": good.round,
        "metrics": exact.timeless(good.metrics),
        "returned": broadcast is good.adapter,
    }
    leading = best and {"round": best.round, "summary": dataclasses.asdict(best.summary)}
    return {"good": judged, "best": leading}


def good_of(form: Mapping[str, Any], adapter: Adapter, optimizer: dict[str, Tensor] | None) -> Good:
    """The last good broadcast again."""
    return Good(form["round"], adapter, optimizer, form["metrics"])


def best_of(form: Mapping[str, Any], adapter: Adapter) -> Scored:
    """The best broadcast again."""
    return Scored(form["round"], adapter, Summary(**form["summary"]))


def report_of(form: Mapping[str, Any]) -> RoundReport:
    """A round's report, from what `RoundReport.to_dict` made of it."""
    refused = [Refusal(form["round"], each["silo"], each["reason"]) for each in form["refused"]]
    parts = {"received": _maybe(Summary, form["received"]), "merge": _maybe(_merge_report, form["merge"])}
    parts["missing_since"] = {silo: Absence(**each) for silo, each in form.get("missing_since", {}).items()}
    return RoundReport(**{**form, **parts, "asked": tuple(form["asked"]), "refused": refused})


def _merge_report(**values: Any) -> MergeReport:
    texts = {name: tuple(values[name]) for name in ("silos", "weights")}
    return MergeReport(**{**values, **texts})


def _maybe(made: Callable[..., Any], values: Mapping[str, Any] | None) -> Any:
    return None if values is None else made(**values)


def _lora(values: Mapping[str, Any] | None) -> Lora | None:
    if values is None:
        return None
    return Lora(**{**values, "target_modules": tuple(values["target_modules"])})
