"""Options of the `llx` command itself, from flags, variables and files."""

from typing import Any

from pydantic import BaseModel, ConfigDict, Field

from llx.choices import OutputFormat
from llx.environment import Environment
from llx.yaml_reader import read_yaml


class ClientOptions(BaseModel):
    """Options of the `llx` command itself, as in ``llx.yaml`` and ``config.yaml``.

    Attributes:
        context: The cluster that is meant.
        output: The format of results.
        url: The gateway that is meant.
        ssh_persist: For how long, in seconds, after a verb has read through SSH its connection is
            kept for the next one (`llx.bootstrap.ssh_sharing`); 0: not at all.
    """

    model_config = ConfigDict(frozen=True, extra="forbid", validate_default=True)

    context: str | None = None
    output: OutputFormat | None = None
    url: str | None = None
    ssh_persist: float = Field(default=60.0, ge=0, le=86_400)


def load_client_options(environment: Environment, **flags: str | None) -> ClientOptions:
    """Options by precedence: flag, then ``LLX_*``, then ``./llx.yaml``, then the user's config.

    Raises:
        ConfigError: A file or a value is wrong.
    """
    merged: dict[str, Any] = {}
    for path in (environment.config_home / "config.yaml", environment.cwd / "llx.yaml"):
        if path.is_file():
            merged |= read_yaml(path, ClientOptions).model_dump(
                exclude_unset=True, exclude_none=True
            )
    variables = {name: environment.get(f"LLX_{name.upper()}") for name in _OPTION_NAMES}
    merged |= {name: value for name, value in variables.items() if value is not None}
    merged |= {name: value for name, value in flags.items() if value is not None}
    return read_yaml("flags and LLX_* variables", ClientOptions, values=merged)


_OPTION_NAMES = tuple(ClientOptions.model_fields)
