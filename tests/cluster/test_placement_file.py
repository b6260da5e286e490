"""What heads leave each other; damage costs nothing but the memory."""

import stat
from pathlib import Path

import pytest

from llx.cluster.placement_file import (
    PlacedInstance,
    Placements,
    load_cordons,
    load_placements,
    save_cordons,
    save_placements,
)


def test_what_is_saved_is_read_back_and_private(tmp_path: Path) -> None:
    path = tmp_path / "placement.json"
    assert load_placements(path) == Placements()
    saved = Placements(
        {"m-0": PlacedInstance("h1", ["tcp://a", "tcp://b"])}, {"gateway-0": "h1"}, ["h9"]
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
