"""The control API and gateways of a cluster on hosts, reached through SSH tunnels.

Both listen on their hosts' loopback unless told otherwise. A tunnel is a unix socket in a private
directory here, so that nobody else on this machine can use it.
"""

import ssl
from dataclasses import dataclass
from types import TracebackType

import msgspec

from llx.api import GatewayStatus
from llx.bootstrap.fan_out import fan_out
from llx.bootstrap.host_layout import HostLayout
from llx.bootstrap.shell import Shell
from llx.bootstrap.ssh import Tunnel
from llx.client import HEAD_STATUS_FILE, TOKEN_FILE, Cluster
from llx.errors import LlxError, UnreachableError
from llx.lean_httpx import httpx
from llx.pinned_tls import trusting
from llx.secret import Secret
from llx.specs import Phase, ProcessStatus

LOOPBACK = frozenset({"127.0.0.1", "::1", "localhost"})


class TunnelTransport(httpx.BaseTransport):
    """HTTP through a tunnel that it owns; with `closes_shell`, the connection under it, too.

    `tls`: for HTTPS within the tunnel.
    """

    def __init__(
        self,
        shell: Shell,
        address: str,
        port: int,
        *,
        tls: ssl.SSLContext | None = None,
        closes_shell: bool = False,
    ) -> None:
        self._shell = shell if closes_shell else None
        self._tunnel = Tunnel(shell, address, port)
        self._tunnel.__enter__()
        verify = True if tls is None else tls
        self._http = httpx.HTTPTransport(uds=str(self._tunnel.path), verify=verify)

    def handle_request(self, request: httpx.Request) -> httpx.Response:
        """Send one request."""
        return self._http.handle_request(request)

    def close(self) -> None:
        """Close connections, tunnel and, if owned, the shell."""
        self._http.close()
        self._tunnel.__exit__(None, None, None)
        if self._shell is not None:
            self._shell.close()

    def __exit__(
        self,
        exc_type: type[BaseException] | None = None,
        exc_value: BaseException | None = None,
        traceback: TracebackType | None = None,
    ) -> None:
        """Close."""
        self.close()


@dataclass(frozen=True, slots=True)
class Head:
    """Where the control API of a cluster on hosts is, seen from its host.

    Attributes:
        url: Of it there.
        token: The bearer token.
        name: What it is called in errors.
        remedy: What to do when it does not answer.
    """

    url: str
    token: Secret
    name: str
    remedy: str

    @property
    def address(self) -> str:
        """Its host's address or name."""
        return httpx.URL(self.url).host

    @property
    def port(self) -> int:
        """Its TCP port."""
        return httpx.URL(self.url).port or 80


def find_head(shell: Shell, layout: HostLayout) -> Head:
    """Read on the head's host, which `shell` reaches, where the control API is.

    Raises:
        UnreachableError: The head is not up, or not yet; or the host does not answer.
    """
    head = f'cluster "{layout.cluster}": its head on {shell.host}'
    down = f"{head} is not running"
    back = (
        "streams go on without it, and it is started again within seconds; if it stays away: "
        f"llx logs {shell.host}, llx up FILE"
    )
    files = [f"{layout.state}/{name}" for name in (HEAD_STATUS_FILE, TOKEN_FILE)]
    found = []
    for each in fan_out(files, shell.read).values():  # each is a command there
        if isinstance(each, LlxError):
            raise each
        found.append(each)
    content, token = found
    if content is None or token is None:
        raise UnreachableError(down, remedy="llx up FILE")
    try:
        status = msgspec.json.decode(content, type=ProcessStatus)
    except msgspec.DecodeError:
        raise UnreachableError(f"{down} yet", remedy="wait for `llx up` to finish") from None
    if status.phase in {Phase.FAILED, Phase.STOPPING}:
        raise UnreachableError(down, detail=status.detail, remedy=back)
    if not status.addresses:
        raise UnreachableError(f"{down} yet", remedy="wait for `llx up` to finish")
    return Head(status.addresses[0], Secret(token.decode().strip()), head, back)


def open_control(shell: Shell, layout: HostLayout, *, closes_shell: bool = False) -> Cluster:
    """A client of the control API on the head's host that `shell` reaches.

    Raises:
        UnreachableError: The head is not up, or not yet; or the host does not answer.
    """
    head = find_head(shell, layout)
    transport = TunnelTransport(shell, head.address, head.port, closes_shell=closes_shell)
    return Cluster(head.url, head.token, transport=transport, name=head.name, remedy=head.remedy)


def needs_tunnel(gateway: GatewayStatus) -> bool:
    """Whether a gateway can be reached from its own host only."""
    return bool(gateway.url) and httpx.URL(gateway.url).host in LOOPBACK


def open_gateway(
    shell: Shell, gateway: GatewayStatus, *, closes_shell: bool = False
) -> TunnelTransport:
    """The way to a gateway that listens on the loopback of the host that `shell` reaches."""
    url, tls = httpx.URL(gateway.url), trusting(gateway.certificate)
    return TunnelTransport(shell, url.host, url.port or 80, tls=tls, closes_shell=closes_shell)
