"""How many files this process may have open: sockets are files, and there is one for each peer."""

import resource
from typing import Final

_MOST: Final = 1 << 17


def raise_file_limit() -> int:
    """As many as this process may have and anybody needs; returns how many that is."""
    soft, hard = resource.getrlimit(resource.RLIMIT_NOFILE)
    most = _MOST if hard == resource.RLIM_INFINITY else min(hard, _MOST)
    if most > soft != resource.RLIM_INFINITY:
        resource.setrlimit(resource.RLIMIT_NOFILE, (most, hard))
        return most
    return most if soft == resource.RLIM_INFINITY else soft
