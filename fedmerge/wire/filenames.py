"""Names of silos as names of files."""

from __future__ import annotations

import hashlib
from urllib.parse import quote

_LONGEST = 100


def file_name(silo: str) -> str:
    """A silo's name as a file name: distinct for distinct names, never hidden, never outside of the folder.

    Example:
        >>> file_name("hospital-a"), file_name("../x y"), file_name("..")
        ('hospital-a', '%2E%2E%2Fx%20y', '%2E%2E')
    """
    quoted = quote(silo, safe="").replace(".", "%2E").replace("~", "%7E")
    if len(quoted) <= _LONGEST:
        return quoted or "%"  # which no quoted name is
    return f"{quoted[:60]}-{hashlib.sha256(silo.encode()).hexdigest()[:32]}"
