"""The control API's resources, version ``v1``: what `llx -o json` prints and scripts may rely on.

Fields are only ever added within a version. Times are Unix seconds, durations seconds.

A module of them is imported when one of its names is first asked for: a verb that lists hosts need
not build what rollouts are told in, and to build all takes a third of what such a verb takes.
"""

from importlib import import_module
from types import MappingProxyType
from typing import TYPE_CHECKING, Any

from llx.api.resource import API_VERSION, MAX_NOTE_CHARS, MAX_VERB_CHARS

if TYPE_CHECKING:
    from llx.api.changes import (
        ChangeReport,
        RolloutList,
        RolloutReport,
        RolloutRequest,
        RolloutStatus,
        ScaleReport,
        ScaleRequest,
        SettingsDocument,
        SettingsUpdate,
        StopReport,
        StopRequest,
    )
    from llx.api.events import (
        EventList,
        EventStatus,
        NoteReport,
        NoteRequest,
    )
    from llx.api.keys import KeysStatus
    from llx.api.moves import (
        LeftOut,
        MigrateReport,
        MigrateRequest,
        MigrationList,
        MigrationStatus,
        MoveOutcome,
        PlannedMove,
        Snapshot,
    )
    from llx.api.requests import (
        NotChanged,
        RequestChange,
        RequestChangeReport,
        RequestList,
        RequestStatus,
        RequestVerb,
    )
    from llx.api.scheduling import (
        DecisionStatus,
        ExplainedRequest,
        Explanation,
        PolicyList,
        PolicyStatus,
        PolicyUpdate,
        QueueList,
        QueueStatus,
    )
    from llx.api.status import (
        ClusterState,
        ClusterStatus,
        ErrorBody,
        GatewayStatus,
        GpuStatus,
        HostState,
        HostStatus,
        InstanceState,
        InstanceStatus,
        InstanceSteps,
        LoadStatus,
        LogSlice,
        ModelStatus,
        PaceStatus,
        UnitStatus,
    )

__all__ = [
    "API_VERSION",
    "MAX_NOTE_CHARS",
    "MAX_VERB_CHARS",
    "ChangeReport",
    "ClusterState",
    "ClusterStatus",
    "DecisionStatus",
    "ErrorBody",
    "EventList",
    "EventStatus",
    "ExplainedRequest",
    "Explanation",
    "GatewayStatus",
    "GpuStatus",
    "HostState",
    "HostStatus",
    "InstanceState",
    "InstanceStatus",
    "InstanceSteps",
    "KeysStatus",
    "LeftOut",
    "LoadStatus",
    "LogSlice",
    "MigrateReport",
    "MigrateRequest",
    "MigrationList",
    "MigrationStatus",
    "ModelStatus",
    "MoveOutcome",
    "NotChanged",
    "NoteReport",
    "NoteRequest",
    "PaceStatus",
    "PlannedMove",
    "PolicyList",
    "PolicyStatus",
    "PolicyUpdate",
    "QueueList",
    "QueueStatus",
    "RequestChange",
    "RequestChangeReport",
    "RequestList",
    "RequestStatus",
    "RequestVerb",
    "RolloutList",
    "RolloutReport",
    "RolloutRequest",
    "RolloutStatus",
    "ScaleReport",
    "ScaleRequest",
    "SettingsDocument",
    "SettingsUpdate",
    "Snapshot",
    "StopReport",
    "StopRequest",
    "UnitStatus",
]

_HOMES = MappingProxyType(
    {
        "changes": (
            "ChangeReport",
            "RolloutList",
            "RolloutReport",
            "RolloutRequest",
            "RolloutStatus",
            "ScaleReport",
            "ScaleRequest",
            "SettingsDocument",
            "SettingsUpdate",
            "StopReport",
            "StopRequest",
        ),
        "events": (
            "EventList",
            "EventStatus",
            "NoteReport",
            "NoteRequest",
        ),
        "keys": ("KeysStatus",),
        "moves": (
            "LeftOut",
            "MigrateReport",
            "MigrateRequest",
            "MigrationList",
            "MigrationStatus",
            "MoveOutcome",
            "PlannedMove",
            "Snapshot",
        ),
        "requests": (
            "NotChanged",
            "RequestChange",
            "RequestChangeReport",
            "RequestList",
            "RequestStatus",
            "RequestVerb",
        ),
        "scheduling": (
            "DecisionStatus",
            "ExplainedRequest",
            "Explanation",
            "PolicyList",
            "PolicyStatus",
            "PolicyUpdate",
            "QueueList",
            "QueueStatus",
        ),
        "status": (
            "ClusterState",
            "ClusterStatus",
            "ErrorBody",
            "GatewayStatus",
            "GpuStatus",
            "HostState",
            "HostStatus",
            "InstanceState",
            "InstanceStatus",
            "InstanceSteps",
            "LoadStatus",
            "LogSlice",
            "ModelStatus",
            "PaceStatus",
            "UnitStatus",
        ),
    }
)
"""Modules, and the names that are theirs."""


if not TYPE_CHECKING:  # else every name would be there, and of any type

    def __getattr__(name: str) -> Any:
        for home, names in _HOMES.items():
            if name in names:
                found = getattr(import_module(f"{__name__}.{home}"), name)
                globals()[name] = found
                return found
        raise AttributeError(f"module {__name__!r} has no attribute {name!r}")


def __dir__() -> list[str]:
    return sorted({*globals(), *__all__})
