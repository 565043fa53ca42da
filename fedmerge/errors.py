"""What fedmerge raises.

    FedMergeError
      RuleError        rule, space or optimizer text, a knob out of range, inputs a rule can't take
      AdapterMismatch  adapters or deltas that do not belong together (names, shapes, LoRA settings)
      WireError        a file or message that is not what it claims to be
      ConfigError      a configuration, data set or base that can't be used as given
      RoundFailed      a round that could not be closed; the last good adapter is intact
      CheckpointError  a run folder that can't be read, or belongs to another run
      PolicyError      a run that a site's own policy forbids, or that came too late for it

Every message says what was given, what was expected, and where. A deployed silo tells the server an error's
class and its `code`, a word or two that name the reason; the sentence stays at the site.
"""

from __future__ import annotations

import difflib
from collections.abc import Iterable


class FedMergeError(Exception):
    """Base class of all errors that fedmerge raises on purpose.

    Args:
        sentence: what was given, what was expected, and where.
        code: names the reason to other parties, such as "policy/max-rounds"; holds nothing private.
    """

    def __init__(self, sentence: str = "", *, code: str = "") -> None:
        super().__init__(sentence)
        self.code = code


class RuleError(FedMergeError):
    """A rule, space or server optimizer that is unknown, misspelt, out of range or unfit for its input."""


class AdapterMismatch(FedMergeError):
    """Adapters or deltas that do not belong together."""


class WireError(FedMergeError):
    """A file or a message that is damaged, hostile, or not what it claims to be."""


class ConfigError(FedMergeError):
    """A configuration, data set or base that can't be used as given."""


class RoundFailed(FedMergeError):
    """A round that could not be closed. The last good adapter is intact."""


class CheckpointError(FedMergeError):
    """A run folder that can't be read or written, or that belongs to another run."""


class PolicyError(FedMergeError):
    """A run that a site's own policy forbids, or a message that came too late for it."""


def nearest(name: str, known: Iterable[str]) -> str:
    """The end of a sentence about an unknown name: the closest known one, and all there are.

    Example:
        >>> nearest("tise", ["ties", "dare"])
        "did you mean 'ties'? There are: dare, ties"
    """
    names = sorted(known)
    close = difflib.get_close_matches(name, names, n=1, cutoff=0.5)
    hint = f"did you mean {close[0]!r}? " if close else ""
    return f"{hint}There are: {', '.join(names)}"
