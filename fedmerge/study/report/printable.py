"""Text from files as it can be shown."""

from __future__ import annotations

import unicodedata

_NOT_SHOWN = ("Cc", "Cs", "Co", "Cn")
_TURNS = "\u202a\u202b\u202d\u202e\u2066\u2067\u2068"


def printable(text: str) -> str:
    r"""Control characters, halves of characters and marks that turn the direction are replaced.

    Example:
        >>> printable("north\x00"), printable("a\u202eb"), printable("größe")
        ('north�', 'a�b', 'größe')
    """
    return "".join(letter if _shown(letter) else "\ufffd" for letter in text)


def _shown(letter: str) -> bool:
    return letter in "\n\t" or (unicodedata.category(letter) not in _NOT_SHOWN and letter not in _TURNS)
