"""Where a node agent is, and what of a spec only it can know: pure functions.

The head knows neither homes nor addresses of hosts. It leaves those fields empty; the agent fills
them in when it starts a process, and tells specs back as the head asked for them.
"""

from dataclasses import dataclass
from pathlib import Path
from typing import Any

import msgspec

from llx.agent.names import status_path
from llx.curve import KEYS_FILE
from llx.host_ports import HostPorts
from llx.specs import GATEWAY_CERTIFICATE, MODELS, GatewaySpec, HostSpec, InstanceSpec

HERE = "localhost"
"""The one host of a cluster on this machine."""

_LOOPBACK = "127.0.0.1"
_WILDCARDS = frozenset({"0.0.0.0", "::"})  # noqa: S104 - recognised, not bound


@dataclass(frozen=True, slots=True)
class Place:
    """A host as its agent knows it.

    Attributes:
        host: Its name in the cluster.
        address: Its IP address, as the other hosts reach it.
        platform: ``cpu`` or ``cuda``.
        models_dir: Where models that llx keeps lie; empty: nowhere.
        port_range: Where instances listen; None: as the system chooses.
        home: What ``~`` is in the paths of models; empty: there is none in them.
    """

    host: str = HERE
    address: str = _LOOPBACK
    platform: str = "cpu"
    models_dir: str = ""
    port_range: tuple[int, int] | None = None
    home: str = ""

    @classmethod
    def of_host(cls, spec: HostSpec) -> "Place":
        """The place that the spec describes."""
        ports = HostPorts(spec.first_port).instances
        return cls(spec.host, spec.address, spec.platform, spec.models_dir, ports, spec.home)

    def instance(self, spec: InstanceSpec, procs_dir: Path) -> InstanceSpec:
        """`spec` as the instance gets it here."""
        return msgspec.structs.replace(
            spec,
            model=self._local(spec.model),
            engine_args=self._local_arguments(spec.engine_args),
            bind_host=self.address,
            port_range=self.port_range,
            keys_path=_keys_path(procs_dir),
            status_path=str(status_path(procs_dir, spec.name)),
        )

    def gateway(self, spec: GatewaySpec, procs_dir: Path) -> GatewaySpec:
        """`spec` as the gateway gets it here."""
        return msgspec.structs.replace(
            spec,
            pools=[
                msgspec.structs.replace(
                    pool,
                    model=self._local(pool.model),
                    engine_args=self._local_arguments(pool.engine_args),
                    serve_args=self._local_arguments(pool.serve_args),
                )
                for pool in spec.pools
            ],
            keys_path=_keys_path(procs_dir),
            status_path=str(status_path(procs_dir, spec.name)),
            url_host=self.address if spec.host in _WILDCARDS else spec.host,
            on_host=self.host,
            certificate_path=str(procs_dir.parent / GATEWAY_CERTIFICATE) if spec.is_tls else "",
        )

    def _local(self, model: str) -> str:
        if self.home and (model == "~" or model.startswith("~/")):
            return f"{self.home}{model[1:]}"
        if not self.models_dir or not model.startswith(MODELS):
            return model
        return f"{self.models_dir}/{model.removeprefix(MODELS)}"

    def _local_arguments(self, arguments: dict[str, Any]) -> dict[str, Any]:
        return {
            key: self._local(value) if isinstance(value, str) else value
            for key, value in arguments.items()
        }


def _keys_path(procs_dir: Path) -> str:
    return str(procs_dir.parent / KEYS_FILE)
