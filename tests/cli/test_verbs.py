"""Read verbs against a head that pretends; output formats, streams, exit codes."""

import json
import os
import re
import socket
import subprocess
import sys
import time
from io import StringIO
from urllib.parse import quote

import pytest
import yaml
from rich.console import Console

from llx.api import ClusterStatus, HostStatus, InstanceStatus, StopReport
from llx.cli.tables import cluster_view, print_cluster, without_ages
from tests.cli.servers import NOW, FakeHead, cluster_status


def recorded(width, **options):
    return Console(file=StringIO(), width=width, color_system=None, **options)


@pytest.mark.golden
class TestTables:
    @pytest.mark.parametrize("is_wide", [False, True], ids=["table", "wide"])
    @pytest.mark.parametrize("width", [80, 100, 200])
    def test_status_piped(self, golden, width, is_wide):
        console = recorded(width)
        print_cluster(console, cluster_status(), is_wide=is_wide, now=NOW)
        golden(f"status-{'wide' if is_wide else 'table'}-{width}.txt", console.file.getvalue())

    @pytest.mark.parametrize("width", [80, 100])
    def test_status_on_a_terminal(self, golden, width):
        console = recorded(width, force_terminal=True, legacy_windows=False)
        console.print(cluster_view(cluster_status(), is_wide=False, now=NOW))
        golden(f"status-terminal-{width}.txt", console.file.getvalue())


class TestAnotherReleaseOfLlx:
    """Whose cluster this one finds on this machine, with settings that it does not know."""

    @pytest.fixture(autouse=True)
    def settings(self, llx, head):
        path = llx.environment.cluster_dir("local") / "cluster.yaml"
        path.write_text(f"{path.read_text()}unheard_of: 1\n")

    def test_verbs_that_read_ask_it(self, llx, head):
        assert llx("status", "-o", "name").stdout == "local\n"
        assert head.asked == ["GET /v1/status"]

    def test_others_are_refused_before_it_is_asked(self, llx, head):
        done = llx("inst", "cordon", "m-0")
        assert (done.exit_code, head.asked) == (5, [])
        assert "was started by another llx" in done.stderr

    def test_one_on_hosts_is_not_taken_for_one_here(self, llx, head):
        (llx.environment.cluster_dir("local") / "id").write_text("abc")
        done = llx("status")
        assert (done.exit_code, head.asked) == (5, [])


class TestStatus:
    def test_table(self, llx, head):
        done = llx("status")
        assert (done.exit_code, done.stderr) == (0, "")
        assert done.stdout.startswith("local  degraded  http://")
        assert "\x1b" not in done.stdout

    def test_json_is_the_resource(self, llx, head):
        done = llx("status", "-o", "json")
        assert ClusterStatus.model_validate_json(done.stdout) == head.found

    def test_yaml_is_the_resource(self, llx, head):
        done = llx("status", "-o", "yaml")
        assert ClusterStatus.model_validate(yaml.safe_load(done.stdout)) == head.found

    def test_name(self, llx, head):
        assert llx("status", "-o", "name").stdout == "local\n"

    def test_format_from_the_environment_and_file(self, llx, head):
        (llx.root / "llx.yaml").write_text("output: name\n")
        assert llx("status").stdout == "local\n"
        assert llx("status", LLX_OUTPUT="json").stdout.startswith("{")
        assert llx("status", "-o", "yaml", LLX_OUTPUT="json").stdout.startswith("api_version")

    def test_no_cluster(self, llx):
        done = llx("status")
        assert (done.exit_code, done.stdout) == (4, "")
        assert done.stderr == "error: no cluster was started here\nremedy: llx up\n"

    def test_unknown_context(self, llx, head):
        done = llx("status", "--context", "nope")
        assert done.exit_code == 4
        assert 'no cluster "nope" (known here: local)' in done.stderr

    def test_cluster_that_is_down(self, llx, head):
        (llx.environment.cluster_dir("local") / "cluster.yaml").unlink()
        done = llx("status")
        assert done.exit_code == 3
        assert done.stderr == "error: cluster local is down\nremedy: llx up\n"

    def test_head_that_is_gone(self, llx, gateway):
        server = FakeHead()
        server.register(llx.environment.cluster_dir("local"))
        with server.running():
            pass
        done = llx("status")
        assert done.exit_code == 3
        assert "does not answer" in done.stderr

    def test_wrong_token(self, llx, head):
        (llx.environment.cluster_dir("local") / "token").write_text("other")
        assert llx("status").exit_code == 1

    def test_watch_tells_changes_only(self):
        one = cluster_status()
        load = one.instances[0].load
        assert load is not None
        later = one.instances[0].model_copy(update={"load": load.model_copy(update={"age_s": 9.0})})
        other = one.model_copy(update={"instances": [later, one.instances[1]]})
        assert without_ages(one) == without_ages(other)
        used = one.gateways[0].model_copy(update={"cores_used": 0.5})
        host = HostStatus(name="h", state="ready", cores_used=1.0, last_heard_s=0.3)
        quiet = host.model_copy(update={"cores_used": 3.0, "last_heard_s": 0.1})
        both = [one.model_copy(update={"hosts": [each]}) for each in (host, quiet)]
        assert without_ages(both[0]) == without_ages(both[1])
        assert without_ages(both[0]) != without_ages(one)
        other = one.model_copy(update={"gateways": [used, *one.gateways[1:]]})
        assert without_ages(one) == without_ages(other)
        busier = later.model_copy(update={"load": load.model_copy(update={"running": 9})})
        changed = one.model_copy(update={"instances": [busier, one.instances[1]]})
        assert without_ages(one) != without_ages(changed)


class TestInstances:
    def test_ls(self, llx, head):
        lines = llx("inst", "ls").stdout.splitlines()
        assert lines[0].split()[:3] == ["NAME", "MODEL", "STATE"]
        assert lines[1].split()[:3] == ["tiny-0", "tiny", "ready"]
        assert lines[2].endswith("RuntimeError: out of memory")
        assert llx("inst", "ls", "-o", "name").stdout == "tiny-0\ntiny-1\n"
        found = [InstanceStatus.model_validate(each) for each in json.loads(
            llx("inst", "ls", "-o", "json").stdout
        )]  # fmt: skip
        assert found == head.found.instances

    def test_get(self, llx, head):
        done = llx("inst", "get", "tiny-1", "-o", "json")
        assert InstanceStatus.model_validate_json(done.stdout) == head.found.instances[1]
        told = llx("inst", "get", "tiny-1").stdout
        assert told.startswith("name: tiny-1\n")
        assert re.search(r"^started_at: \d{4}-\d\d-\d\d [\d:]{8} \(.* ago\)$", told, re.MULTILINE)
        assert llx("inst", "get", "tiny-1", "-o", "name").stdout == "tiny-1\n"

    def test_get_nobody(self, llx, head):
        done = llx("inst", "get", "nobody")
        assert (done.exit_code, done.stderr) == (4, 'error: no "nobody"\nremedy: look\n')

    def test_restart_says_who(self, llx, head):
        done = llx("inst", "restart", "tiny-0", "-y", LOGNAME="ada")
        assert done.exit_code == 0
        machine = quote(socket.gethostname(), safe="")
        path = f"POST /v1/instances/tiny-0/restart?user=ada%40{machine}&deadline_s="
        assert f"{path}60.0" in head.asked
        llx("inst", "restart", "tiny-0", "-y", "--deadline", "2m", LOGNAME="ada")
        assert f"{path}120.0" in head.asked

    def test_cordon_and_uncordon(self, llx, head):
        assert llx("inst", "cordon", "tiny-0", "-o", "name").stdout == "tiny-0\n"
        titles, row = llx("inst", "uncordon", "tiny-0").stdout.splitlines()
        assert (titles.split()[:3], row.split()[0]) == (["NAME", "MODEL", "STATE"], "tiny-0")
        asked = [each.partition("?")[0] for each in head.asked]
        assert asked == [
            "POST /v1/instances/tiny-0/cordon", "POST /v1/instances/tiny-0/uncordon",
        ]  # fmt: skip

    def test_drain(self, llx, head):
        head.drained = StopReport(finished=1, cut=0, moved=4)
        done = llx("inst", "drain", "tiny-0")
        assert (done.exit_code, done.stderr) == (0, "")
        assert done.stdout == "tiny-0 is empty: 4 requests moved, 1 finished, 0 cut\n"

    def test_a_drain_says_what_stayed_and_why(self, llx, head):
        head.drained = StopReport(
            finished=1, cut=0, moved=4, remaining=1, not_moved=["llx-a: pinned: it has a pooler"]
        )
        done = llx("inst", "drain", "tiny-0")
        assert done.exit_code == 6
        assert done.stdout == (
            "tiny-0 is not empty: 1 requests go on there; 4 requests moved, 1 finished, 0 cut\n"
        )
        assert done.stderr == "could not move: llx-a: pinned: it has a pooler\n"


class TestHosts:
    def test_a_drained_host_is_empty(self, llx, head):
        done = llx("host", "drain", "h2", "-y")
        assert done.exit_code == 0
        assert done.stdout == "h2 is empty: 0 requests moved, 2 finished, 1 cut\n"

    def test_a_drain_names_what_it_could_not_stop(self, llx, head):
        head.drained = StopReport(finished=2, cut=1, not_stopped=["gateway-1", "m-1"])
        done = llx("host", "drain", "h2", "-y")
        assert done.exit_code == 6
        assert done.stdout == (
            "h2 is not empty: gateway-1, m-1 may still run there; 0 requests moved, 2 finished,"
            " 1 cut\n"
        )


class TestLogs:
    def test_tail(self, llx, head):
        done = llx("logs", "tiny-0", "--tail", "2")
        assert (done.exit_code, done.stdout) == (0, "two\nthree\n")
        assert llx("inst", "logs", "tiny-0", "--tail", "1").stdout == "three\n"

    def test_nobody(self, llx, head):
        assert llx("logs", "nobody").exit_code == 4

    def test_from_the_file_when_the_head_is_gone(self, llx):
        folder = llx.environment.cluster_dir("local") / "procs" / "tiny-0"
        folder.mkdir(parents=True)
        (folder / "log").write_text("last\nwords\n")
        done = llx("logs", "tiny-0", "--tail", "1")
        assert (done.exit_code, done.stdout) == (0, "words\n")
        assert "reading" in done.stderr
        done = llx("logs", "nobody")
        assert (done.exit_code, "there are: tiny-0" in done.stderr) == (4, True)

    def test_of_a_cluster_that_is_down_nothing_is_followed(self, llx):
        folder = llx.environment.cluster_dir("local") / "procs" / "tiny-0"
        folder.mkdir(parents=True)
        (folder / "log").write_text("last\nwords\n")
        done = llx("logs", "tiny-0", "-f")
        assert (done.exit_code, done.stdout) == (0, "last\nwords\n")
        assert "(cluster local is down: nothing will be added)\n" in done.stderr

    def test_a_head_that_goes_while_it_is_followed(self, llx):
        """The file it reads then has more, and the reader leaves."""
        folder = llx.environment.cluster_dir("local") / "procs" / "tiny-0"
        folder.mkdir(parents=True)
        log = folder / "log"
        log.write_text("one\n")
        words = [sys.executable, "-m", "llx", "logs", "tiny-0", "-f"]
        variables = {**os.environ, **llx.variables, "PYTHONPATH": os.pathsep.join(sys.path)}
        server = FakeHead()
        with server.running():
            server.register(llx.environment.cluster_dir("local"))
            process = subprocess.Popen(
                words, env=variables, stdout=subprocess.PIPE, stderr=subprocess.PIPE, text=True
            )
            assert [process.stdout.readline() for _ in range(3)] == ["one\n", "two\n", "three\n"]
        try:
            said = process.stderr.readline()
            assert "does not answer" in said
            assert f"reading {log})" in said
            time.sleep(0.2)
            with log.open("a") as file:
                file.write("more\n")
            assert process.stdout.readline() == "more\n"
        finally:
            process.kill()
            process.communicate()


class TestContexts:
    def test_ls(self, llx, head):
        llx.environment.cluster_dir("old").mkdir()
        done = llx("context", "ls", "-o", "json")
        found = {each["name"]: each for each in json.loads(done.stdout)}
        assert (found["local"]["state"], found["local"]["is_default"]) == ("up", True)
        assert (found["old"]["state"], found["old"]["is_default"]) == ("down", False)
        assert llx("context", "ls").stdout.splitlines()[1].split()[:3] == ["*", "local", "up"]

    def test_ls_of_nothing(self, llx):
        assert llx("context", "ls", "-o", "name").stdout == ""


class TestGenerate:
    def test_streams(self, llx, head, gateway):
        done = llx("generate", "hello", "--max-tokens", "2", "--class", "batch")
        assert (done.exit_code, done.stdout) == (0, "word0 word1 \n")
        assert gateway.bodies[0]["stream"] is True
        assert gateway.bodies[0]["messages"] == [{"role": "user", "content": "hello"}]
        assert gateway.headers[0]["x-llx-priority"] == "batch"

    def test_whole(self, llx, head, gateway):
        done = llx("generate", "hello", "--no-stream", "--model", "tiny")
        assert done.stdout == "word0 word1 word2 \n"
        assert "stream" not in gateway.bodies[0]

    def test_prompt_from_stdin(self, llx, head, gateway):
        llx("generate", "-", stdin="from afar")
        assert gateway.bodies[0]["messages"][0]["content"] == "from afar"

    def test_without_a_cluster_by_url_and_key(self, llx, gateway):
        done = llx("generate", "hello", "--url", gateway.url, LLX_API_KEY="sesame")
        assert done.exit_code == 0
        assert gateway.headers[0]["authorization"] == "Bearer sesame"

    @pytest.mark.parametrize(
        ("prompt", "code", "words"),
        [
            ("401", 2, "refused the API key: because 401"),
            ("404", 4, "because 404"),
            ("400", 2, "because 400"),
            ("429", 1, "busy: because 429\nremedy: repeat in 7 s"),
            ("500", 1, "answered 500: because 500"),
            ("break", 1, "broke off: EngineDead"),
            ("cut", 1, "ended before [DONE]"),
        ],
    )
    def test_refusals(self, llx, head, prompt, code, words):
        done = llx("generate", prompt)
        assert done.exit_code == code
        assert words in done.stderr

    def test_several_models(self, llx, head, gateway):
        gateway.models = ("a", "b")
        done = llx("generate", "hello")
        assert (done.exit_code, "several models are served: a, b" in done.stderr) == (2, True)

    def test_nobody_there(self, llx):
        done = llx("generate", "hello", "--url", "http://127.0.0.1:9")
        assert (done.exit_code, "no gateway answers" in done.stderr) == (3, True)


class TestChat:
    def test_remembers_and_forgets(self, llx, head, gateway):
        done = llx("chat", "--system", "be brief", stdin="one\n\ntwo\n/reset\nthree\n/quit\nfour\n")
        assert done.exit_code == 0
        assert done.stdout == "word0 word1 word2 \n" * 3
        turns = [[each["content"] for each in body["messages"]] for body in gateway.bodies]
        assert turns == [
            ["be brief", "one"],
            ["be brief", "one", "word0 word1 word2 ", "two"],
            ["be brief", "three"],
        ]
