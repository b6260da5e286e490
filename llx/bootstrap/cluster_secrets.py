"""The secrets of a cluster on hosts: made by the first `up`, kept on the head's host alone.

The operator's machine keeps none of them: each `up` reads them from the head over SSH, so a second
operator who may log in there can work on the cluster, too.
"""

import secrets
from dataclasses import dataclass

import msgspec

from llx.bootstrap.host_layout import HostLayout
from llx.bootstrap.shell import Shell
from llx.bootstrap.tls import Authority, HostCertificate, make_authority
from llx.curve import ClusterKeys
from llx.secret import Secret
from llx.specs import HostSpec


@dataclass(frozen=True, slots=True)
class ClusterSecrets:
    """What must be the same on all hosts.

    Attributes:
        cluster_id: Random; tells this cluster from another one of its name.
        keys: The CURVE keys' file.
        ray_token: Ray's.
        control_token: The control API's; on the head only.
        authority: Issues the hosts' certificates; its key is on the head only.
    """

    cluster_id: str
    keys: Secret
    ray_token: Secret
    control_token: Secret
    authority: Authority


def new_secrets(cluster_id: str = "") -> ClusterSecrets:
    """Fresh ones, of a cluster that was called `cluster_id` before, if at all."""
    return ClusterSecrets(
        cluster_id=cluster_id or secrets.token_hex(8),
        keys=Secret(ClusterKeys.create().dump()),
        ray_token=Secret(secrets.token_hex(32)),
        control_token=Secret(secrets.token_urlsafe(32)),
        authority=make_authority(),
    )


def read_secrets(shell: Shell, layout: HostLayout) -> ClusterSecrets | None:
    """Those on the head's host; None if some of them are not there."""
    state = layout.state
    spec = _read(shell, str(layout.spec))
    keys = _read(shell, f"{state}/keys.json")
    ray_token = _read(shell, f"{state}/ray.token")
    control_token = _read(shell, f"{state}/token")
    ca_cert, ca_key = _read(shell, f"{state}/tls/ca.pem"), _read(shell, f"{state}/tls/ca.key")
    if not (spec and keys and ray_token and control_token and ca_cert and ca_key):
        return None
    try:
        cluster_id = msgspec.json.decode(spec, type=HostSpec).cluster_id
    except msgspec.DecodeError:
        return None  # of another release
    authority = Authority(ca_cert, Secret(ca_key))
    return ClusterSecrets(
        cluster_id, Secret(keys), Secret(ray_token), Secret(control_token), authority
    )


def host_certificate(
    shell: Shell, layout: HostLayout, authority: Authority, address: str
) -> HostCertificate:
    """The host's certificate: the one it has, if it is of this authority and address."""
    tls = f"{layout.state}/tls"
    if _read(shell, f"{tls}/ca.pem") == authority.cert_pem:
        cert, key = _read(shell, f"{tls}/host.pem"), _read(shell, f"{tls}/host.key")
        if cert and key:
            found = HostCertificate(cert, Secret(key))
            if found.is_for(address):
                return found
    return authority.issue(shell.host, address)


def _read(shell: Shell, path: str) -> str:
    content = shell.read(path)
    return "" if content is None else content.decode(errors="replace")
