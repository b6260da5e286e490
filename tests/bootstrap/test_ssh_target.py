"""How a host is reached: cluster.yaml over ~/.ssh/config, as `ssh -G` would say."""

import os
import pwd
import shutil
import subprocess
from pathlib import Path

import pytest

from llx.bootstrap.ssh_target import SshTarget, StrictHostKeys, resolve
from llx.environment import Environment
from llx.errors import ConfigError
from llx.settings import HostSettings


class Home:
    def __init__(self, path: Path) -> None:
        self.path = path
        (path / ".ssh").mkdir(parents=True)

    def configure(self, text: str, name: str = "config") -> None:
        (self.path / ".ssh" / name).write_text(text)

    def resolve(self, address: str = "h1", **given: object) -> SshTarget:
        variables = {"HOME": str(self.path), "SSH_AUTH_SOCK": "/agent"}
        host = HostSettings.model_validate({"name": "one", "address": address, **given})
        return resolve(host, Environment(variables, Path.cwd()))


@pytest.fixture
def home(tmp_path: Path) -> Home:
    return Home(tmp_path / "home")


def test_without_a_configuration(home: Home) -> None:
    target = home.resolve()
    ssh = home.path / ".ssh"
    assert target.name == "one"
    assert (target.address, target.port) == ("h1", 22)
    assert target.user == pwd.getpwuid(os.getuid()).pw_name
    assert target.identity_files == ()
    assert target.default_keys == (ssh / "id_ed25519", ssh / "id_ecdsa", ssh / "id_rsa")
    assert target.known_hosts[0] == ssh / "known_hosts"
    assert target.agent_socket == "/agent"
    assert target.jumps == ()
    assert target.known_as == "h1"


def test_the_first_value_found_wins_and_cluster_yaml_before_all(home: Home) -> None:
    home.configure(
        "User everybody\n"
        "Host h1 h?.lab !h9.lab\n"
        "  HostName=10.0.0.%h\n  Port 2222\n  User nobody\n"
        '  IdentityFile "~/.ssh/with space"\n  IdentityFile ~/.ssh/%r@%h\n'
        "Host *\n  Port 22\n  ConnectTimeout 3\n  IdentityFile ~/.ssh/all\n"
        "  StrictHostKeyChecking accept-new\n  HostKeyAlias Alias\n  HashKnownHosts yes\n"
        "  UserKnownHostsFile ~/a ~/b\n  IdentitiesOnly yes\n  IdentityAgent none\n"
    )
    target = home.resolve()
    ssh = home.path / ".ssh"
    assert (target.user, target.address, target.port) == ("everybody", "10.0.0.h1", 2222)
    assert target.identity_files == (
        ssh / "with space",
        ssh / "everybody@10.0.0.h1",
        ssh / "all",
    )
    assert target.default_keys == ()
    assert target.connect_timeout_s == 3
    assert target.strict_host_keys is StrictHostKeys.ACCEPT_NEW
    assert target.known_as == "alias", "as it stands, whatever the port"
    assert target.known_hosts == (home.path / "a", home.path / "b")
    assert target.hashes_names
    assert target.is_identities_only
    assert target.agent_socket is None
    given = home.resolve(user="me", port=22022, identity_file="/key")
    assert (given.user, given.port) == ("me", 22022)
    assert given.identity_files[0] == Path("/key")
    assert home.resolve("h9.lab").port == 22


def test_included_files_hold_where_they_are_included(home: Home) -> None:
    home.configure("Host a\n  Include parts/*.conf\nHost *\n  User rest\n")
    (home.path / ".ssh" / "parts").mkdir()
    home.configure("Port 1001\n", "parts/1.conf")
    home.configure("Host b\n  Port 1002\nHost *\n  HostName named\n", "parts/2.conf")
    one, two = home.resolve("a"), home.resolve("b")
    assert (one.port, one.address, one.user) == (1001, "named", "rest")
    assert (two.port, two.address, two.user) == (22, "b", "rest")


def test_match_lines(home: Home) -> None:
    home.configure(
        "Host gpu*\n  HostName %h.lab\n"
        "Match host *.lab user root\n  Port 1\n"
        'Match originalhost gpu1 !user "root,admin"\n  Port 2\n'
        "Match exec true\n  Port 3\n"
        "Match all\n  Port 4\n"
    )
    assert home.resolve("gpu1", user="root").port == 1
    assert home.resolve("gpu1", user="me").port == 2
    assert home.resolve("gpu2", user="me").port == 4


def test_jump_hosts_are_resolved_like_any_other(home: Home) -> None:
    home.configure(
        "Host far\n  ProxyJump me@near:2200,[fd00::1]:22\n"
        "Host near\n  HostName 10.0.0.2\n  ProxyJump bastion\n"
        "Host bastion\n  User b\n"
    )
    target = home.resolve("far")
    assert [(hop.user, hop.address, hop.port) for hop in target.jumps][:2] == [
        ("b", "bastion", 22),
        ("me", "10.0.0.2", 2200),
    ]
    assert target.jumps[2].address == "fd00::1"
    assert {hop.name for hop in target.jumps} == {"one"}
    assert all(hop.is_jump for hop in target.jumps)
    assert not target.is_jump
    assert "jump host b@bastion" in target.jumps[0].label


def test_a_jump_host_for_everything_is_not_its_own(home: Home) -> None:
    home.configure("Host *\n  ProxyJump bastion\n")
    assert [hop.address for hop in home.resolve("far").jumps] == ["bastion"]
    assert home.resolve("bastion").jumps == ()
    home.configure("Host *\n  ProxyJump none\n")
    assert home.resolve("far").jumps == ()


def test_a_proxy_command_gets_its_tokens(home: Home) -> None:
    home.configure("Host h1\n  HostName 10.0.0.1\n  ProxyCommand via %h %p %r %n 100%%\n")
    assert home.resolve(user="me").proxy_command == "via 10.0.0.1 22 me h1 100%"


@pytest.mark.parametrize(
    ("text", "reason"),
    [
        ("Host a\n  ProxyJump b\nHost b\n  ProxyJump a\n", "circle"),
        ("Host a\n  ProxyJump b:c:d\n", "ProxyJump"),
        ("Host a\n  Port ssh\n", 'port "ssh" is no number'),
    ],
)
def test_what_cannot_be_followed_names_the_host(home: Home, text: str, reason: str) -> None:
    home.configure(text)
    with pytest.raises(ConfigError, match=f"^one: ssh config: .*{reason}"):
        home.resolve("a")


@pytest.mark.skipif(shutil.which("ssh") is None, reason="no ssh here")
@pytest.mark.parametrize("alias", ["h1", "gpu7", "deep", "other"])
def test_we_read_a_configuration_as_openssh_does(home: Home, alias: str) -> None:
    home.configure(
        "# comment\nHost gpu? !gpu9\n\tHostName=%h.lab\n\tUser  u1\n"
        "Host deep\nHostName 10.1.2.3\nPort=2200\n"
        "Match host 10.1.* \n  User u2\n  IdentityFile /k/%h\n"
        "Host *\n  User u3\n  Port 2300\n  IdentityFile /k/%r\n  ConnectTimeout 7\n"
    )
    config = home.path / ".ssh" / "config"
    said = subprocess.run(["ssh", "-G", "-F", config, alias], capture_output=True, text=True)
    wanted = [line.split(" ", 1) for line in said.stdout.splitlines()]
    one = dict(reversed(wanted))
    target = home.resolve(alias)
    assert (target.address, target.user, str(target.port)) == (
        one["hostname"],
        one["user"],
        one["port"],
    )
    assert str(target.connect_timeout_s) == one["connecttimeout"]
    named = [value for key, value in wanted if key == "identityfile"]
    raw = [each.replace("%h", target.address).replace("%r", target.user) for each in named]
    assert [str(each) for each in target.identity_files] == raw
