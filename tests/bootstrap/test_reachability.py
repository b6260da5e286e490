import socket
import threading
from dataclasses import replace

import pytest

from llx.bootstrap.host_facts import Listener, ShimFact
from llx.bootstrap.reachability import (
    Route,
    exposed_ports,
    find_blocked,
    find_exposed,
    ports_of,
    probe_routes,
    targets_of,
)
from llx.errors import ExitCode
from llx.settings import ClusterSettings
from tests.bootstrap.fake_shell import FakeShell, LocalShell, completed
from tests.bootstrap.host_said import hosts


def settings(count, **changes):
    return ClusterSettings.model_validate(
        {
            "hosts": [f"h{index}" for index in range(1, count + 1)],
            "models": [{"name": "m", "model": "o/n"}],
            **changes,
        }
    )


def route(source, target, is_open, port=20001):
    return Route(source, target, f"10.0.0.{target[1:]}", port, is_open)


class TestWhom:
    def test_few_hosts_try_all_others(self):
        assert targets_of(settings(3), ["h1", "h2", "h3"]) == {
            "h1": ("h2", "h3"),
            "h2": ("h1", "h3"),
            "h3": ("h1", "h2"),
        }

    def test_of_many_each_tries_the_head_and_some_and_is_tried_by_some(self):
        names = [f"h{index}" for index in range(1, 41)]
        found = targets_of(settings(40), names)
        assert all("h1" in each for name, each in found.items() if name != "h1")
        assert all(name not in each for name, each in found.items())
        assert len(found["h1"]) == 39
        assert max(len(each) for name, each in found.items() if name != "h1") == 9
        assert {name for each in found.values() for name in each} == set(names)

    def test_a_head_that_cannot_be_asked_is_not_tried(self):
        names = [f"h{index}" for index in range(2, 41)]
        assert all("h1" not in each for each in targets_of(settings(40), names).values())

    def test_the_heads_ports_besides(self):
        given = settings(2, network={"first_port": 30000})
        assert ports_of(given, "h1") == (30000, 30009, 30001, 30010, 30100)
        assert ports_of(given, "h2") == (30001, 30010, 30100)


class TestProbe:
    def answers(self, *lines):
        shells = {name: FakeShell(name) for name in ("h1", "h2")}
        for shell in shells.values():
            shell.answer("sh", by=completed("".join(f"{line}\n" for line in lines)))
        addresses = {"h1": "10.0.0.1", "h2": "10.0.0.2"}
        found = probe_routes(settings(2), shells, addresses)
        return {(e.source, e.port): e.is_open for e in found if e.source == "h1"}

    @pytest.mark.parametrize(
        ("line", "is_open"),
        [
            ("0\t", True),
            ("1\tbash: connect: Connection refused", True),
            ("1\tConnectionRefusedError: [Errno 111] Connection refused", True),
            ("124\t", False),
            ("1\tbash: connect: No route to host", False),
            ("1\tbash: connect: Network is unreachable", False),
            ("1\tTimeoutError: timed out", False),
            ("1\tbash: /dev/tcp/10.0.0.2/20001: No such file or directory", None),
        ],
    )
    def test_what_came_back(self, line, is_open):
        assert self.answers(f"10.0.0.2\t20001\t{line}")["h1", 20001] is is_open

    def test_what_was_not_said_is_not_known(self):
        assert set(self.answers("nonsense", "").values()) == {None}

    def test_a_host_that_dies_meanwhile_is_left_to_others_to_report(self):
        shells = {name: FakeShell(name) for name in ("h1", "h2")}
        shells["h1"].is_dead = True
        shells["h2"].answer("sh", by=completed("10.0.0.1\t20001\t124\t\n"))
        found = probe_routes(settings(2), shells, {"h1": "10.0.0.1", "h2": "10.0.0.2"})
        assert {each.source for each in found} == {"h2"}

    def test_one_host_has_nobody_to_try(self):
        assert probe_routes(settings(1), {"h1": FakeShell()}, {"h1": "10.0.0.1"}) == []

    @pytest.mark.parametrize("hidden", [(), ("bash",), ("bash", "python3")])
    def test_for_real(self, hidden, tmp_path):
        """127.0.0.2 stands for the other host; without bash by Python, without both not at all."""
        (tmp_path / "bin").mkdir()
        for name in ("bash", "python3", "timeout", "tail", "sh"):
            if name not in hidden:
                (tmp_path / "bin" / name).symlink_to(f"/usr/bin/{name}")
        shell = LocalShell(environment={"PATH": str(tmp_path / "bin")})
        with socket.create_server(("127.0.0.2", 0)) as server:
            port = server.getsockname()[1]
            given = settings(2, network={"first_port": port - 1})
            addresses = {"h1": "127.0.0.1", "h2": "127.0.0.2"}
            other = FakeShell("h2")
            other.answer("sh", by=completed(""))
            found = probe_routes(given, {"h1": shell, "h2": other}, addresses)
        mine = {each.port: each.is_open for each in found if each.source == "h1"}
        assert mine[port] is (None if len(hidden) == 2 else True)
        assert len(mine) == 3


class TestBlocked:
    def test_open_routes_are_no_finding(self):
        assert list(find_blocked([route("h1", "h2", True), route("h2", "h1", True)])) == []

    def test_one_route(self):
        routes = [
            route("h1", "h2", True),
            route("h3", "h2", False, 20001),
            route("h3", "h2", False, 20002),
            route("h3", "h2", False, 20100),
            route("h3", "h2", True, 20010),
        ]
        (finding,) = find_blocked(routes)
        assert finding.host == "h3"
        assert finding.problem == (
            "it does not reach h2 (10.0.0.2), ports 20001-20002, 20100: no answer"
        )
        assert finding.exit_code is ExitCode.UNREACHABLE
        assert "hosts[].cluster_address" in finding.remedy

    def test_a_host_that_nobody_reaches_is_named_itself(self):
        routes = [route("h1", "h3", False), route("h2", "h3", False), route("h3", "h1", True)]
        (finding,) = find_blocked(routes)
        assert finding.host == "h3"
        assert finding.problem == "no other host reaches 10.0.0.3, port 20001: no answer"

    def test_of_two_hosts_it_is_the_route(self):
        (finding,) = find_blocked([route("h1", "h2", False), route("h2", "h1", True)])
        assert finding.host == "h1"

    def test_what_could_not_be_tried_is_said(self):
        (finding,) = find_blocked([route("h1", "h2", None), route("h2", "h1", True)])
        assert finding.host == "h1"
        assert "not checked" in finding.problem
        assert not finding.is_fatal


class TestExposure:
    @pytest.fixture
    def door(self):
        with socket.create_server(("127.0.0.3", 0)) as server:
            stop = threading.Event()

            def serve():
                server.settimeout(0.05)
                while not stop.is_set():
                    try:
                        server.accept()[0].close()
                    except TimeoutError:
                        continue

            thread = threading.Thread(target=serve)
            thread.start()
            yield server.getsockname()[1]
            stop.set()
            thread.join()

    def known(self, port, address="127.0.0.3", mark="cafe"):
        listeners = (
            Listener(port, "0.0.0.0", "ann", 1, "raylet", mark),
            Listener(port + 1, "0.0.0.0", "ann", 1, "raylet", mark),
        )
        shims = (ShimFact("ray", 1, "cafe"),)
        known = hosts(1, listeners=listeners, processes=shims)
        return {"h1": replace(known["h1"], cluster_address=address)}

    def test_ports_that_answer_are_found(self, door):
        given = settings(1, network={"first_port": door})
        assert exposed_ports(self.known(door), given) == {"h1": {door}}

    def test_other_peoples_ports_are_not_ours_to_judge(self, door):
        given = settings(1, network={"first_port": door})
        assert exposed_ports(self.known(door, mark="beef"), given) == {"h1": set()}

    def test_from_a_host_of_the_cluster_they_must_be_open(self, door):
        given = settings(2, network={"first_port": door})
        known = self.known(door)
        here = {"h2": replace(hosts(2)["h2"], cluster_address="127.0.0.1")}
        assert exposed_ports({**known, **here}, given) == {"h1": set(), "h2": set()}

    @pytest.mark.parametrize(("tls", "words"), [(True, "a token and TLS"), (False, "TLS is off")])
    def test_what_is_said(self, tls, words):
        given = settings(2, network={"tls": tls})
        (finding,) = find_exposed({"h1": {20000, 20001, 20100}, "h2": set()}, given)
        assert finding.host == "h1"
        assert finding.problem.startswith("ports 20000-20001, 20100 answer machines outside")
        assert "2 of Ray" in finding.problem
        assert words in finding.problem
        assert "firewall" in finding.remedy
        assert not finding.is_fatal
