"""The first token of a model, asked of a gateway of a cluster on hosts."""

from collections.abc import Mapping

from llx.api import ClusterStatus, GatewayStatus, InstanceState
from llx.bootstrap.remote_control import needs_tunnel, open_gateway
from llx.bootstrap.shell import Shell
from llx.errors import RemoteError
from llx.openai_client import ChatRequest, Message, OpenAIClient
from llx.pinned_tls import trusting
from llx.secret import Secret

_TIMEOUT_S = 60.0


def ask_gateway(
    shells: Mapping[str, Shell], status: ClusterStatus, model: str, key: Secret | None
) -> None:
    """Ask for one token, through SSH to the gateway's host where there is a connection.

    Raises:
        RemoteError: There is no gateway to ask, or it cannot give one now.
        UnreachableError: It does not answer.
    """
    gateway = _reachable(shells, status)
    shell = shells.get(gateway.host)
    transport = None
    if shell is not None:  # its host can reach it in any case, this machine perhaps not
        transport = open_gateway(shell, gateway)
    request = ChatRequest(model, (Message("user", "Hello"),), max_tokens=1, temperature=0.0)
    tls = trusting(gateway.certificate)
    with OpenAIClient(
        gateway.url, key, timeout_s=_TIMEOUT_S, tls=tls, transport=transport
    ) as client:
        client.chat(request)


def _reachable(shells: Mapping[str, Shell], status: ClusterStatus) -> GatewayStatus:
    for each in status.gateways:
        is_near = each.host in shells or not needs_tunnel(each)
        if each.state is InstanceState.READY and each.url and is_near:
            return each
    raise RemoteError("no gateway is ready")
