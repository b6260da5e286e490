"""llx: a command-line cluster manager and operations tool for LLM serving."""

__version__ = "0.1.0"
