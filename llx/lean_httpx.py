"""httpx without the command it comes with, which is half of its import."""

from llx.lean_import import without

with without("httpx._main"):
    import httpx

__all__ = ["httpx"]
