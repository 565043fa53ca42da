"""Why a reply is refused: a sentence for people, and a short code to count by.

reply/unsigned   it has no signature              reply/forged    its signature does not hold
reply/stranger   no silo of the roster            reply/revoked   of a silo whose key is no longer good
reply/silo       of another silo than was asked   reply/run       of another run
reply/stale      of an earlier round              reply/round     of a round to come
reply/base       trained on another base          reply/replayed  to a message that is answered, or none
reply/duplicate  a second one                     reply/unasked   to no message of the round
reply/too-large  more bytes or records than asked reply/records   records that are not what was asked
reply/tensors    names, shapes, dtypes or bytes   reply/values    NaN, infinite, or impossible values
reply/weight     no number of rows                reply/outlier   far longer than the others, or against them
reply/broken     it can't be read at all          flower/<code>   Flower's own error
silo/failed      the silo says that it failed     <its own code>  or why it refused: "policy/steps"
"""

from __future__ import annotations

from collections.abc import Iterator
from contextlib import contextmanager

from fedmerge.errors import WireError


class Refused(WireError):
    """A reply that is not taken: its sentence says why, `code` what kind of reason that is."""

    def __init__(self, code: str, sentence: str) -> None:
        """Name the kind of reason, "reply/forged", and say it in full."""
        super().__init__(sentence)
        self.code = code


@contextmanager
def refusing(code: str) -> Iterator[None]:
    """Give a code to whatever inside is refused without one.

    Example:
        >>> with refusing("reply/weight"):
        ...     raise WireError("no number")
        Traceback (most recent call last):
        fedmerge.server.refusing.Refused: no number
    """
    try:
        yield
    except Refused:
        raise
    except WireError as problem:
        raise Refused(code, str(problem)) from None
