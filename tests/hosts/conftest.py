"""The fixture of namespace hosts. Made when first asked for: other tiers pay nothing for it."""

import os
from collections.abc import Callable, Iterator
from typing import Any

import pytest

from tests.hosts.rig import HostOptions, Rig, new_rig, why_no_hosts


@pytest.fixture(scope="session")
def host_rig() -> Iterator[Rig]:
    """One switch for the session."""
    reason = why_no_hosts()
    if reason is not None and os.environ.get("LLX_REQUIRE_HOSTS", "0") != "0":
        pytest.fail(f"LLX_REQUIRE_HOSTS is set, but namespace hosts need more: {reason}")
    if reason is not None:
        pytest.skip(f"no namespace hosts: {reason}")
    with new_rig() as rig:
        yield rig


@pytest.fixture
def hosts(host_rig: Rig) -> Iterator[Callable[..., Rig]]:
    """``hosts(n, binds=…, hide=…)``: a rig of `n` hosts, switched on, freshly installed."""

    def make(count: int, **options: Any) -> Rig:
        host_rig.up(count, HostOptions(**options))
        return host_rig

    yield make
    host_rig.down()
