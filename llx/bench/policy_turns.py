"""A cluster's rules, changed from one variant's turn to the next, and put back at the end."""

import json
from collections.abc import Mapping, Sequence
from types import TracebackType
from typing import Self

from pydantic import JsonValue

from llx.api import PolicyUpdate
from llx.bench.scenario import Variant
from llx.client import Cluster
from llx.errors import ConfigError, NotFoundError


class PolicyTurns:
    """Has the cluster schedule the model by each variant's rules while it is that one's turn.

    What `llx policy set` had changed before stays in force beneath them, and alone afterwards.
    Nothing is asked of the cluster where no variant has rules.

    Args:
        control: Of the cluster; None: there is none.
        model: Whose rules.
        variants: All of them.
        user: Who is at work, for the audit trail.

    Raises:
        ConfigError: There are rules, and no cluster or no model that they could be of.
    """

    def __init__(
        self, control: Cluster | None, model: str, variants: Sequence[Variant], user: str
    ) -> None:
        self._control = control if any(each.policy for each in variants) else None
        if control is None and any(each.policy for each in variants):
            raise ConfigError("policies need a cluster of llx: give --context instead of a URL")
        self._model = model
        self._variants = variants
        self._user = user
        self._before: Mapping[str, JsonValue] = {}
        self._in_force: Mapping[str, JsonValue] = {}

    def __enter__(self) -> Self:
        """Remember what is in force, and have all variants' rules checked before anything runs.

        Raises:
            NotFoundError: The cluster has no such model.
            ConfigError: A rule is wrong; says which.
        """
        if self._control is None:
            return self
        known = {each.model: each.changed for each in self._control.policies().policies}
        if self._model not in known:
            raise NotFoundError(f"the cluster has no model {self._model}: {', '.join(known)}")
        self._before = self._in_force = known[self._model]
        for each in self._variants:
            self._update({**self._before, **each.policy}, is_dry_run=True)
        return self

    def __exit__(
        self,
        kind: type[BaseException] | None,
        error: BaseException | None,
        trace: TracebackType | None,
    ) -> None:
        """Put back what was in force."""
        self._make(self._before)

    def begin(self, variant: Variant) -> None:
        """It is this variant's turn."""
        self._make({**self._before, **variant.policy})

    def _make(self, wanted: Mapping[str, JsonValue]) -> None:
        if self._control is not None and wanted != self._in_force:
            self._update(wanted)
            self._in_force = wanted

    def _update(self, wanted: Mapping[str, JsonValue], *, is_dry_run: bool = False) -> None:
        assert self._control is not None, "rules have a cluster"
        self._control.update_policies(
            PolicyUpdate(
                model=self._model,
                changes={key: json.dumps(value) for key, value in wanted.items()},
                is_revert=True,
                is_dry_run=is_dry_run,
                user=self._user,
            )
        )
