"""Closed sets of words that users type; imports the standard library only, as the CLI must."""

from enum import StrEnum


class Platform(StrEnum):
    """What the engines run on; `auto`: CUDA if there is a GPU, else CPU."""

    AUTO = "auto"
    CPU = "cpu"
    CUDA = "cuda"


class OutputFormat(StrEnum):
    """How a read verb prints its result."""

    TABLE = "table"
    WIDE = "wide"
    JSON = "json"
    YAML = "yaml"
    NAME = "name"
