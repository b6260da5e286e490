"""``[user@]host[:port]``, as one types it, taken apart. Pure; nothing is looked up.

cluster.yaml has a key for each part: what may stand in them is `llx.cluster_file`'s.
"""

import ipaddress
import re

from llx.cluster_file import HostSettings, host_name_of
from llx.errors import ConfigError
from llx.yaml_reader import read_yaml

_BRACKETED = re.compile(r"\[(?P<host>[^\[\]]+)\](?::(?P<port>[0-9]+))?")
_NAMED = re.compile(r"(?P<host>[^:\[\]]+)(?::(?P<port>[0-9]+))?")


def parse_host(text: str) -> HostSettings:
    """The host that `text` means, named after its address as far as names go.

    Args:
        text: A name, an alias of ``~/.ssh/config`` or an IP address; a port after an IPv6 address
            needs brackets around the address.

    Raises:
        ConfigError: It is none.
    """
    user, at, place = text.rpartition("@")
    if _is_ipv6(place):
        host, port = place, None
    else:
        found = _BRACKETED.fullmatch(place) or _NAMED.fullmatch(place)
        if found is None:
            raise _no_host(text)
        host, port = found["host"], found["port"]
    values: dict[str, str | int] = {"name": host_name_of(host), "address": host}
    values |= {"user": user} if at else {}
    values |= {"port": int(port[:6])} if port else {}
    try:
        return read_yaml("--hosts", HostSettings, values=values)
    except ConfigError as error:
        raise _no_host(text, error.message.removeprefix("--hosts: ")) from None


def _is_ipv6(place: str) -> bool:
    try:
        return ipaddress.ip_address(place).version == 6
    except ValueError:
        return False


def _no_host(text: str, why: str = "") -> ConfigError:
    return ConfigError(
        f'"{text}" is no [user@]host[:port]' + (f" ({why})" if why else ""),
        remedy="write each as `ssh` would be given it, such as ubuntu@10.0.0.11 or gpu-2:2222, "
        "with commas between",
    )
