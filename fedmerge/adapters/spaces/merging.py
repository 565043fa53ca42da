"""A rule over all modules and tensors of an adapter, each kind of rule in the cheapest way that is exact."""

from __future__ import annotations

from collections.abc import Iterator
from functools import partial

from torch import Tensor

from fedmerge.adapters.apply import apply_rule
from fedmerge.adapters.coefficients import Gram, decide, source_gram
from fedmerge.adapters.context import Context
from fedmerge.adapters.grams import gram_of_updates
from fedmerge.adapters.spaces.layers import Layers, Step, merge_others, naming
from fedmerge.adapters.spaces.places import Place
from fedmerge.adapters.together import weighted_together
from fedmerge.rules import Rule, resolve
from fedmerge.rules.spectral import MatrixRule


def merge_layers(
    layers: Layers, rule: Rule, context: Context, rank: int | None, place: Place
) -> Iterator[tuple[str, Step | Tensor]]:
    """Merge each module's update, and each tensor that is no LoRA pair.

    Rules that come down to coefficients, and matrix rules, run between small bases whatever the place; an
    elementwise rule runs in the place. A rule over the whole adapter sees all modules and tensors together.

    Yields:
        A module and its next product, or a tensor's name and its merged values.
    """
    rank = rank or layers.started.rank
    together = []
    known = coefficients_of(layers, rule, context)
    weighted = [name for name in layers.pairs if name in known] if context.device.type == "cuda" else []
    at_once = weighted_together(weighted, layers.updates, known, rank, layers.precision)
    for name in layers.pairs:
        resolved = resolve(rule, name)
        if name in at_once:
            yield name, Step(at_once[name].low, at_once[name].step)
        elif name in known:
            yield name, layers.weighted(name, known[name], rank)
        elif isinstance(resolved, MatrixRule):
            draw = context.draw(name, layers.shape(name))
            with naming(name):
                merged = resolved.merge_layer(layers.layer(name), context.weights, draw)
            yield name, layers.following(name, merged, rank)
        elif resolved.scope == "adapter":
            together.append(place.source(name))
        else:
            for _, values in apply_rule(resolved, [place.source(name)], context):
                yield name, place.back(name, values, rank)
    for name, values in merge_others(rule, together + layers.tensors(), context, known):
        yield name, place.back(name, values, rank) if name in layers.pairs else values


def coefficients_of(layers: Layers, rule: Rule, context: Context) -> dict[str, Tensor]:
    """The coefficients of modules and tensors whose rule has them without seeing entries, by name.

    From the weights, or from the Gram matrices of the true updates: of each by itself, or, for a rule over
    the whole adapter, of all modules and tensors together.
    """

    def of_module(name: str) -> Tensor:
        with naming(name):
            gram = gram_of_updates(layers.updates(name))
            if not bool(gram.isfinite().all()):
                raise OverflowError
        return gram

    grams: dict[str, Gram] = {name: partial(of_module, name) for name in layers.pairs}
    grams |= {source.name: source_gram(source, context) for source in layers.tensors()}
    return decide(rule, grams, context)
