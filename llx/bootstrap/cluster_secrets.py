"""The secrets of a cluster on hosts: made by the first `up`, kept on the head's host alone.

The operator's machine keeps none of them: each `up` reads them from the head over SSH, so a second
operator who may log in there can work on the cluster, too.
"""

import json
import secrets
from dataclasses import dataclass, replace

import msgspec

from llx.bootstrap.host_layout import HostLayout
from llx.bootstrap.shell import Shell
from llx.bootstrap.tls import Authority, HostCertificate, make_authority
from llx.curve import ClusterKeys
from llx.secret import Secret
from llx.specs import HostSpec

RAY_NOTE = "ray.next"
"""In the cluster's directory on the head: `RaySecrets` that are about to replace Ray's."""


@dataclass(frozen=True, slots=True)
class RaySecrets:
    """By which Ray's processes know each other: its token, and who issues their certificates."""

    token: Secret
    authority: Authority

    @classmethod
    def create(cls) -> "RaySecrets":
        """Fresh ones."""
        return cls(Secret(secrets.token_hex(32)), make_authority())

    def dump(self) -> Secret:
        """As one file."""
        authority = [self.authority.cert_pem, self.authority.key_pem.reveal()]
        return Secret(json.dumps([self.token.reveal(), *authority]))

    @classmethod
    def parse(cls, text: str) -> "RaySecrets | None":
        """Of `dump`; None: it says nothing of the kind."""
        try:
            token, cert_pem, key_pem = msgspec.json.decode(text, type=tuple[str, str, str])
        except msgspec.DecodeError:
            return None
        return cls(Secret(token), Authority(cert_pem, Secret(key_pem)))


@dataclass(frozen=True, slots=True)
class ClusterSecrets:
    """What must be the same on all hosts.

    Attributes:
        cluster_id: Random; tells this cluster from another one of its name.
        keys: The CURVE keys' file.
        ray_token: Ray's.
        control_token: The control API's; on the head only.
        authority: Issues the hosts' certificates for Ray; its key is on the head only.
        gateway_authority: Issues the gateways' of llx's making; likewise. It is another one, since
            clients trust it, who do not hear of it when Ray's is replaced.
        next_ray: What an `up --rotate` replaces Ray's by, while it does.
    """

    cluster_id: str
    keys: Secret
    ray_token: Secret
    control_token: Secret
    authority: Authority
    gateway_authority: Authority
    next_ray: RaySecrets | None = None

    @property
    def is_ray_being_laid(self) -> bool:
        """Whether Ray's are those of `next_ray` already, though not on every host perhaps."""
        return self.next_ray is not None and self.next_ray.token == self.ray_token

    def with_ray(self, ray: RaySecrets) -> "ClusterSecrets":
        """With those for Ray."""
        return replace(self, ray_token=ray.token, authority=ray.authority)


def new_secrets(cluster_id: str = "") -> ClusterSecrets:
    """Fresh ones, of a cluster that was called `cluster_id` before, if at all."""
    ray = RaySecrets.create()
    return ClusterSecrets(
        cluster_id=cluster_id or secrets.token_hex(8),
        keys=Secret(ClusterKeys.create().dump()),
        ray_token=ray.token,
        control_token=Secret(secrets.token_urlsafe(32)),
        authority=ray.authority,
        gateway_authority=make_authority(),
    )


def rotated(secrets_now: ClusterSecrets) -> ClusterSecrets:
    """With another token for the control API.

    The CURVE keys and Ray's secrets are replaced in steps (`key_rotation`, `ray_renewal`). The
    gateways' authority stays, since clients trust it.
    """
    return replace(secrets_now, control_token=Secret(secrets.token_urlsafe(32)))


def read_secrets(shell: Shell, layout: HostLayout) -> ClusterSecrets | None:
    """Those on the head's host; None if some of them are not there.

    Of Ray's the noted ones count as soon as anything of them has been laid: not all may have been.
    The gateways' authority is made when there is none.
    """
    state = layout.state
    spec = _read(shell, str(layout.spec))
    keys = _read(shell, f"{state}/keys.json")
    ray_token = _read(shell, f"{state}/ray.token")
    control_token = _read(shell, f"{state}/token")
    ca_cert, ca_key = _read(shell, f"{state}/tls/ca.pem"), _read(shell, f"{state}/tls/ca.key")
    if not (spec and keys and ray_token and control_token and ca_cert and ca_key):
        return None
    gateway_cert = _read(shell, f"{state}/tls/gateway-ca.pem")
    gateway_key = _read(shell, f"{state}/tls/gateway-ca.key")
    is_known = gateway_cert and gateway_key
    gateway_authority = (
        Authority(gateway_cert, Secret(gateway_key)) if is_known else make_authority()
    )
    try:
        cluster_id = msgspec.json.decode(spec, type=HostSpec).cluster_id
    except msgspec.DecodeError:
        return None  # of another release
    ray = RaySecrets(Secret(ray_token), Authority(ca_cert, Secret(ca_key)))
    following = RaySecrets.parse(_read(shell, f"{state}/{RAY_NOTE}"))
    if following is not None and _have_common(ray, following):
        ray = following
    return ClusterSecrets(
        cluster_id,
        Secret(keys),
        ray.token,
        Secret(control_token),
        ray.authority,
        gateway_authority,
        following,
    )


def _have_common(one: RaySecrets, other: RaySecrets) -> bool:
    return (
        one.token == other.token
        or one.authority.cert_pem == other.authority.cert_pem
        or one.authority.key_pem == other.authority.key_pem
    )


def host_certificate(
    shell: Shell, layout: HostLayout, authority: Authority, address: str
) -> HostCertificate:
    """The host's certificate: the one it has, if it is of this authority and address."""
    tls = f"{layout.state}/tls"
    cert, key = _read(shell, f"{tls}/host.pem"), _read(shell, f"{tls}/host.key")
    found = HostCertificate(cert, Secret(key))
    if found.is_for(address) and found.is_of(authority):
        return found
    return authority.issue(shell.host, address)


def _read(shell: Shell, path: str) -> str:
    content = shell.read(path)
    return "" if content is None else content.decode(errors="replace")
