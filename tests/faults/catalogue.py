"""The faults that fedmerge is held against, by number: what happens, and what it does then.

`python docs/reliability.py` makes docs/reliability.md of this and of the tests that are marked with a number.
"Refused" means: this one reply is dropped, with silo, round and reason on record, the round goes on while its
quorum holds, and the result has the bits of a run without that silo.
"""

from __future__ import annotations

from typing import NamedTuple


class Fault(NamedTuple):
    """What goes wrong, and what is done about it."""

    what: str
    then: str


REFUSED = "refused"

FAULTS: dict[str, dict[int, Fault]] = {
    "Values": {
        1: Fault("NaN in one element of a delta", REFUSED),
        2: Fault("an infinite value, of either sign", REFUSED),
        3: Fault(
            "finite deltas whose sum is beyond float32",
            "summed in float64 and rounded once; where the result itself is beyond its dtype the round "
            "fails, the adapter before it intact",
        ),
        4: Fault(
            "a delta a million times too long",
            "left, shortened or refused, as `strategy.guard` says; logged and flagged in the round's report",
        ),
        5: Fault("a delta of zeros", "accepted, counted with its weight, flagged in the round's report"),
        6: Fault("denormal numbers and -0.0", "merged like any others: the same bits in any order"),
    },
    "Names and shapes": {
        7: Fault("a transposed tensor", REFUSED),
        8: Fault("a shape that broadcasting would accept", REFUSED),
        9: Fault("a scalar in the place of a tensor", REFUSED),
        10: Fault("a tensor is missing", REFUSED),
        11: Fault("a tensor too many", REFUSED),
        12: Fault("an empty record, or none", REFUSED),
        13: Fault(
            "names with `../`, NUL, ten thousand characters, look-alike letters, terminal codes",
            "refused; the log shows them printable and short, and no name becomes a path",
        ),
        14: Fault(
            "another rank, alpha or set of target modules; A and B swapped",
            "refused; alpha does not travel, and adapters that bring their own are not merged with others",
        ),
        15: Fault(
            "another dtype",
            "refused, unless `wire.encoding` declares the cast; the result has the broadcast's dtype in any "
            "order",
        ),
        16: Fault("bfloat16, which NumPy does not know", "travels bit for bit, both ways"),
    },
    "Bytes": {
        17: Fault("pickles, in any place that has room for one", "refused; nothing is ever unpickled"),
        18: Fault(
            "bytes cut short, garbage or empty; damaged objects of Flower's, of each kind",
            "refused, also where Flower could not put the reply together",
        ),
        19: Fault(
            "a header that claims terabytes; a chunk that is named a million times",
            "refused before anything of that size is allocated",
        ),
        20: Fault("metadata that contradicts the bytes", REFUSED),
        21: Fault(
            "a body larger than any answer to what was asked",
            "refused while it is pulled: hardly more than the cap is ever taken",
        ),
    },
    "Weights": {
        22: Fault(
            "a weight of 0, below 0, NaN, infinite, 2^62, a list, a string, none",
            "refused; a large one is capped by `strategy.weight-cap` and the roster. Where all are "
            "impossible the round fails",
        ),
    },
    "Protocol": {
        23: Fault(
            "a reply twice; two nodes under one name", "counts once; neither of the two nodes is believed"
        ),
        24: Fault("a reply of another round", REFUSED),
        25: Fault("a delta trained on another base", REFUSED),
        26: Fault("a delta of another run", "refused, where replies are signed"),
        27: Fault(
            "another silo's name, in the reply or in what Flower's message says that it answers", REFUSED
        ),
        28: Fault("one bit changed in anything that is signed", REFUSED),
        29: Fault("a signed reply, sent once more", "refused, and counted"),
    },
    "Liveness": {
        30: Fault("a silo is late", "the round closes at its deadline without it; it takes part in the next"),
        31: Fault(
            "an error at a silo whose text names a patient's file", "the server sees a short code only"
        ),
        32: Fault("a ClientApp exits, or is killed for memory", REFUSED),
        33: Fault(
            "a SuperNode is killed, and comes back after seconds or minutes",
            "taken back without a hand's turn",
        ),
        34: Fault("every silo fails", "the run ends with an error; the adapter is unchanged"),
        35: Fault("fewer silos than the quorum", "the run ends and says so; it does not wait for ever"),
    },
    "Crashes": {
        36: Fault("the server is killed, at any instant", "the run is resumed and ends in the same bits"),
        37: Fault("the SuperLink is killed", "`fedmerge deploy watch` submits the run again; it goes on"),
        38: Fault(
            "a checkpoint is cut short, has a flipped bit, is of another base or config",
            "refused; the round before is used",
        ),
        39: Fault("the disk is full or read-only", "the run stops and says so; what was written is intact"),
        40: Fault("two runs on one folder", "the second is refused"),
        41: Fault("a run resumed twice", "random state and what was spent go on from where they were"),
    },
    "Identity and doors": {
        42: Fault("no TLS, another CA, a certificate that is over or of another name", "no connection"),
        43: Fault("a node that is not registered, revoked, or has another's key", "no connection"),
        44: Fault(
            "control or runtime calls from a site's network",
            "refused by the configuration that `fedmerge deploy init` writes; open on Flower's defaults",
        ),
        45: Fault(
            "an app bundle that is not signed, or changed", "no code travels; silos run what they installed"
        ),
    },
    "Scale and determinism": {
        46: Fault("1, 2 or 100 silos, replies in any order", "the same bits"),
        47: Fault(
            "a GPU in the place of the CPU; its memory runs out in the merge",
            "the bits of the CPU for elementwise rules, 1e-6 of the largest value for others; smaller "
            "pieces, at last the CPU, with the same result",
        ),
        48: Fault(
            "100 MB of random values from each of 3 silos",
            "the ServerApp stays below 1 GB, imports included; it writes each reply down before it merges",
        ),
        49: Fault("500 rounds in one process", "memory, descriptors, threads and disk stay flat"),
        50: Fault(
            "any schema, any change of records or bytes",
            "refused without a trace, or a clear failure with the last good adapter intact",
        ),
    },
}

NUMBERS = {number: fault for group in FAULTS.values() for number, fault in group.items()}
