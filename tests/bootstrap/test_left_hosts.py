"""Hosts that were left: remembered until a purge has been there, or they are back."""

import stat

import pytest

from llx.bootstrap.cluster_dir import DOWN_FILE, LEFT_FILE
from llx.bootstrap.left_hosts import load_left, named_apart, save_left, take_over_down_file
from llx.errors import ConfigError
from llx.settings import ClusterSettings, HostSettings, dump_cluster


def host(name: str, **values: object) -> HostSettings:
    return HostSettings.model_validate({"name": name, "address": f"10.0.0.{name[1]}", **values})


def cluster(*hosts: HostSettings) -> ClusterSettings:
    model = {"name": "m", "model": "x", "engine": "sim"}
    values = {"cluster": "c", "models": [model], "hosts": [each.model_dump() for each in hosts]}
    return ClusterSettings.model_validate(values)


H1, H2, H3 = host("h1"), host("h2", user="ann"), host("h3", port=2222)


def test_what_was_saved_is_read_back_each_place_once(tmp_path):
    save_left(tmp_path, [H2, H3, host("h9", address=H3.address, port=2222)])
    assert load_left(tmp_path) == (H2, H3)
    assert stat.S_IMODE((tmp_path / LEFT_FILE).stat().st_mode) == 0o600
    save_left(tmp_path, [])
    assert not (tmp_path / LEFT_FILE).exists()
    assert load_left(tmp_path) == ()


def test_a_host_that_was_dropped_while_the_cluster_was_down_was_left(tmp_path):
    (tmp_path / DOWN_FILE).write_text(dump_cluster(cluster(H1, H2)))
    take_over_down_file(tmp_path, cluster(H1))
    assert load_left(tmp_path) == (H2,)
    assert not (tmp_path / DOWN_FILE).exists()


def test_a_host_that_is_back_is_no_longer_left(tmp_path):
    save_left(tmp_path, [H2, H3])
    take_over_down_file(tmp_path, cluster(H1, H2))
    assert load_left(tmp_path) == (H3,)


def test_a_down_file_that_cannot_be_read_is_kept_and_stops_nothing(tmp_path):
    (tmp_path / DOWN_FILE).write_text("cluster: c\nof_another_release: 1\n")
    take_over_down_file(tmp_path, cluster(H1))
    assert (tmp_path / DOWN_FILE).exists()


def test_a_damaged_file_is_named(tmp_path):
    (tmp_path / LEFT_FILE).write_text("hosts: 3\n")
    with pytest.raises(ConfigError, match=LEFT_FILE):
        load_left(tmp_path)


def test_names_that_are_in_use_are_told_apart():
    old, older = host("h1", address="10.0.0.8"), host("h1", address="10.0.0.9")
    apart = named_apart([H2, old, older], [H1, H2])
    assert [(each.name, each.address) for each in apart] == [
        ("h1-left", "10.0.0.8"),
        ("h1-left-left", "10.0.0.9"),
    ]
