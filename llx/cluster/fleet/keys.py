"""Whether all that listens in the cluster has taken up its present keys."""

from llx.api import KeysStatus
from llx.cluster.fleet.gateway_line import GatewayLine
from llx.cluster.fleet.load_watch import LoadWatch


def keys_status(line: GatewayLine, loads: LoadWatch) -> KeysStatus:
    """How old the keys of the sockets are, and who does not use them yet.

    `line` and `loads` are of one head, and have the same keys.
    """
    first, *others = loads.keys.ring()
    away = loads.not_with(first.listener_public)
    return KeysStatus(
        made_at=float(first.made_at) if first.made_at else None,
        is_changing=bool(others),
        awaited=[*away, *(["scheduler"] if line.listens_with != first else [])],
    )
