"""What heads leave each other; damage costs nothing but the memory."""

import stat
from pathlib import Path

import pytest

from llx.cluster.placement_file import (
    PlacedUnit,
    Placements,
    load_cordons,
    load_placements,
    save_cordons,
    save_placements,
)
from llx.specs import EngineKind, GatewaySpec, InstanceSpec


def test_what_is_saved_is_read_back_and_private(tmp_path: Path) -> None:
    path = tmp_path / "placement.json"
    assert load_placements(path) == Placements()
    instance = InstanceSpec("m-0", "m", EngineKind.SIM, "/m", {"a": [1]}, 1, "", "", "")
    gateway = GatewaySpec("gateway-0", "h", 1, [], [], [], 9, "tcp://s", "", "")
    saved = Placements(
        {"m-0": PlacedUnit("h1", ["tcp://a", "tcp://b"], instance, 3, "killed", was_ready=True)},
        {"gateway-0": PlacedUnit("h1", spec=gateway)},
        ["h9"],
    )
    save_placements(path, saved)
    assert load_placements(path) == saved
    assert stat.S_IMODE(path.stat().st_mode) == 0o600
    cordons = tmp_path / "cordons.json"
    assert load_cordons(cordons) == frozenset()
    save_cordons(cordons, frozenset({"b", "a"}))
    assert load_cordons(cordons) == {"a", "b"}


@pytest.mark.parametrize("data", [b"", b"{", b"[1]", b'{"instances": 7}', b"\xff"])
def test_damage_is_nothing(tmp_path: Path, data: bytes) -> None:
    path = tmp_path / "file"
    path.write_bytes(data)
    assert load_placements(path) == Placements()
    assert load_cordons(path) == frozenset()
