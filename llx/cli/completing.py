"""What the shell is offered that only a running cluster knows: requests, instances, hosts, models.

Asked at each press of the tab key, so bounded in time; a cluster that is down, or out of reach,
offers nothing and says nothing.
"""

import threading
from collections.abc import Callable, Sequence
from typing import TYPE_CHECKING

import typer

from llx.cli.parameters import complete_process
from llx.cli.session import Session

if TYPE_CHECKING:
    from llx.api import ClusterStatus, GatewayStatus, HostStatus, InstanceStatus, ModelStatus
    from llx.client import Cluster

    Named = InstanceStatus | GatewayStatus | HostStatus | ModelStatus

_LONGEST_S = 3.0
_MOST_REQUESTS = 200


def complete_request(ctx: typer.Context, incomplete: str) -> list[str]:
    """Ids of requests; their clients' own ones too, where those are begun."""
    found = _asked(ctx, lambda control: _request_ids(control, incomplete))
    return [each for each in found if each.startswith(incomplete)]


def complete_instance(ctx: typer.Context, incomplete: str) -> list[str]:
    """Names of instances."""
    return _named(ctx, lambda status: status.instances, incomplete)


def complete_unit(ctx: typer.Context, incomplete: str) -> list[str]:
    """Names of instances and gateways."""
    return sorted(
        {
            *_named(ctx, lambda status: [*status.instances, *status.gateways], incomplete),
            *complete_process(incomplete),
        }
    )


def complete_host(ctx: typer.Context, incomplete: str) -> list[str]:
    """Names of hosts."""
    return _named(ctx, lambda status: status.hosts, incomplete)


def complete_model(ctx: typer.Context, incomplete: str) -> list[str]:
    """Names of models."""
    return _named(ctx, lambda status: status.models, incomplete)


def _named(
    ctx: typer.Context,
    among: "Callable[[ClusterStatus], Sequence[Named]]",
    incomplete: str,
) -> list[str]:
    found = _asked(ctx, lambda control: [each.name for each in among(control.status())])
    return sorted(each for each in found if each.startswith(incomplete))


def _request_ids(control: "Cluster", incomplete: str) -> list[str]:
    found = control.requests(match=incomplete, limit=_MOST_REQUESTS).requests
    ids = [each.name or each.id for each in found]
    if incomplete:
        ids += [each.id for each in found if each.name]
    return ids


def _asked(ctx: typer.Context, ask: "Callable[[Cluster], list[str]]") -> list[str]:
    # Not within the time: on a busy machine they take longer than the cluster's answer.
    import llx.api.requests
    import llx.api.status
    import llx.bootstrap.cluster_dir
    import llx.client  # noqa: F401

    found: list[str] = []

    def work() -> None:
        try:
            session = Session(context_name=ctx.params.get("context"))
            with session.control_to_read() as control:
                found.extend(ask(control))
        except Exception:  # noqa: BLE001 - the shell's prompt is no place for errors
            return

    thread = threading.Thread(target=work, daemon=True)
    thread.start()
    thread.join(_LONGEST_S)
    return list(found)
