"""What pages about simulated and about measured runs have in common."""

from collections.abc import Iterator
from contextlib import contextmanager
from typing import Final

from llx.errors import InstallError

STYLE: Final = """
body { font: 15px/1.5 system-ui, sans-serif; color: #33373d; margin: 2rem auto; max-width: 70rem;
       padding: 0 1rem; }
h1 { font-size: 1.4rem; margin-bottom: 0; }
p { max-width: 48rem; color: #5d636b; }
.table { overflow-x: auto; margin: 1.5rem 0; }
table { border-collapse: collapse; font-size: 13px; font-variant-numeric: tabular-nums; }
th, td { padding: .25rem .6rem; text-align: right; white-space: nowrap; }
th { font-weight: 600; border-bottom: 1px solid #9a9ea5; }
td { border-bottom: 1px solid #e4e6e9; }
svg { width: 100%; height: auto; margin: .5rem 0 1.5rem; }
"""


@contextmanager
def drawing() -> Iterator[None]:
    """Around the import of what draws.

    Raises:
        InstallError: matplotlib is not installed.
    """
    try:
        yield
    except ModuleNotFoundError as error:
        if error.name is None or not error.name.startswith("matplotlib"):
            raise
        raise InstallError("pictures need matplotlib", remedy="pip install 'llx[plots]'") from None
