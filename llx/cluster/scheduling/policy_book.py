"""What operators have changed of the models' scheduling, and what they have paused; outlives heads.

cluster.yaml        scheduling: {dispatch: freest, …}
policies.json       {"m": {"changed": {"dispatch": "round_robin"}, "is_paused": false}}
in force            cluster.yaml's with the changes; they hold until they are reverted
"""

from collections.abc import Iterable, Mapping
from pathlib import Path
from typing import Any

import msgspec

from llx.cluster.state_dir import write_private
from llx.errors import ConfigError
from llx.log import get_log
from llx.scheduling_settings import SchedulingSettings, with_changes
from llx.settings import ModelSettings

log = get_log(__name__)


class ModelPolicy(msgspec.Struct, frozen=True, forbid_unknown_fields=True):
    """What was changed of one model's: dotted key → value."""

    changed: dict[str, Any] = {}
    is_paused: bool = False


class PolicyBook:
    """Kept in a file.

    Args:
        path: The file; it need not exist.
    """

    def __init__(self, path: Path) -> None:
        self._path = path
        self._of: dict[str, ModelPolicy] = {}
        if path.exists():
            try:
                self._of = msgspec.json.decode(path.read_bytes(), type=dict[str, ModelPolicy])
            except (OSError, msgspec.DecodeError) as error:
                log.error("policies.not_read", path=path, error=error)

    def of(self, model: str) -> ModelPolicy:
        """What was changed of a model's."""
        return self._of.get(model, ModelPolicy())

    def scheduling(self, model: ModelSettings) -> SchedulingSettings:
        """In force. Changes that no longer fit the file are left out, and said in the log."""
        try:
            return with_changes(model.scheduling, self.of(model.name).changed)
        except ConfigError as error:
            log.warning("policies.do_not_fit", model=model.name, error=error)
            return model.scheduling

    def paused(self, models: Iterable[str]) -> list[str]:
        """Those of them of which nothing is moved or scaled by rule."""
        return [each for each in models if self.of(each).is_paused]

    def put(self, policies: Mapping[str, ModelPolicy]) -> None:
        """Replace what was changed of these models'; it is on disk when this returns.

        Raises:
            OSError: The disk refuses; then nothing has changed.
        """
        new = {**self._of, **policies}
        new = {name: each for name, each in new.items() if each != ModelPolicy()}
        write_private(self._path, msgspec.json.encode(new).decode())
        self._of = new
