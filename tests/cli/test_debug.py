"""`llx debug bundle` on two hosts that are this machine: what it takes, masks, and does without."""

import json
import tarfile

import pytest

from llx.cli.debug import show_plan, write_bundle
from llx.errors import ConflictError, ExitCode, LlxError, NotFoundError
from tests.cli.servers import TOKEN, cluster_status

KEYS = {"listener_public": "pub-0123456789", "listener_secret": "zmq&<>()[]{}@%$#.secret"}
PLANTED = {
    "control token": TOKEN,
    "ray token": "ray-token-of-the-cluster",
    "hub token": "hub_token_of_the_cluster",
    "curve key": KEYS["listener_secret"],
    "api key": "the-api-key-of-ann",
    "bearer": "abc.def.ghi-of-a-client",
    "digest": "f" * 64,
    "prompt": "tell me my own words",
    "of the shell": "what-LLX_API_KEY-says",
}
LOG = f"""2026-11-28T10:00:00.000Z INFO gateway.started listening=127.0.0.1
2026-11-28T10:00:01.000Z ERROR a.header authorization="Bearer {PLANTED["bearer"]}"
2026-11-28T10:00:02.000Z INFO an.api_key api_key={PLANTED["api key"]}
2026-11-28T10:00:03.000Z INFO curve key={KEYS["listener_secret"]} in the middle
2026-11-28T10:00:04.000Z INFO hub said={PLANTED["hub token"]} and {PLANTED["ray token"]}
2026-11-28T10:00:05.000Z INFO vllm Received request: prompt: '{PLANTED["prompt"]}'
2026-11-28T10:00:06.000Z INFO own {PLANTED["of the shell"]}
2026-11-28T10:00:07.000Z INFO last.line
"""
SPEC = {"name": "gateway-0", "api_keys": [{"tenant": "ann", "sha256": PLANTED["digest"]}]}


@pytest.fixture
def cluster(hosts, llx):
    """Two hosts with logs, state and secrets."""
    llx.variables["LLX_API_KEY"] = PLANTED["of the shell"]
    hosts.know()
    hosts.procs("h1", gateway_0=LOG, head=LOG)
    hosts.procs("h2", tiny_0=LOG)
    for name in ("h1", "h2"):
        state = hosts.home(name) / ".llx/clusters/c"
        (state / "keys.json").write_text(json.dumps(KEYS))
        (state / "ray.token").write_text(PLANTED["ray token"])
        (state / "hf.token").write_text(PLANTED["hub token"] + "\n")
    state = hosts.home("h1") / ".llx/clusters/c"
    (state / "token").write_text(TOKEN)
    (state / "procs/gateway-0/spec.json").write_text(json.dumps(SPEC))
    (state / "events.jsonl").write_text('{"kind": "x", "text": "password=abcdefgh"}\n')
    (state / "recordings").mkdir()
    for term in (1, 2):
        (state / f"recordings/term-{term}.jsonl").write_text(f'{{"term": {term}}}\n')
    return hosts


def take(hosts, tmp_path, **options):
    """The files of a bundle, by name, and how it ended."""
    path = tmp_path / "out.tar.gz"
    ended = None
    try:
        write_bundle(hosts.session(), path, options.pop("log_bytes", 1 << 20), **options)
    except LlxError as error:
        ended = error
    with tarfile.open(path) as archive:
        files = {
            name.partition("/")[2]: archive.extractfile(name).read().decode()
            for name in archive.getnames()
        }
    assert path.stat().st_mode & 0o777 == 0o600
    return files, ended


def leaks(files):
    return [
        (what, name)
        for name, text in files.items()
        for what, secret in PLANTED.items()
        if secret in text or json.dumps(secret)[1:-1] in text
    ]


def test_everything_and_no_secret(cluster, tmp_path):
    with cluster.head(cluster_status()) as head:
        head.settings = f"gateway: {{api_keys: [{{tenant: ann, sha256: {PLANTED['digest']}}}]}}\n"
        head.page = f"llx:term 3.0\n# {PLANTED['control token']}\n"
        files, ended = take(cluster, tmp_path)
    assert leaks(files) == []
    assert set(files) >= {
        "contents.json", "operator/versions.json", "operator/cluster.yaml",
        "head/status.json", "head/settings.yaml", "head/snapshot.json", "head/events.json",
        "head/queues.json", "head/policies.json", "head/rollouts.json", "head/decisions.json",
        "head/metrics.txt", "hosts/h1/facts.txt", "hosts/h2/facts.txt",
        "hosts/h1/procs/gateway-0/log", "hosts/h1/procs/gateway-0/spec.json",
        "hosts/h1/procs/head/log", "hosts/h2/procs/tiny-0/log", "hosts/h1/events.jsonl",
        "hosts/h1/recordings/term-2.jsonl",
    }  # fmt: skip
    assert not any("token" in name or "keys.json" in name for name in files)
    assert "hosts/h1/recordings/term-1.jsonl" not in files
    assert "last.line" in files["hosts/h2/procs/tiny-0/log"]
    assert json.loads(files["hosts/h1/procs/gateway-0/spec.json"])["api_keys"][0] == {
        "tenant": "ann",
        "sha256": "***",
    }
    contents = json.loads(files["contents.json"])
    assert {each["name"] for each in contents["files"]} == set(files) - {"contents.json"}
    # Nothing listens at the URL of the gateway that this head tells of.
    assert list(contents["not_taken"]) == ["metrics of gateway-0"]
    assert ended.exit_code is ExitCode.PARTIAL


def test_prompts_on_request(cluster, tmp_path):
    files, _ = take(cluster, tmp_path, with_prompts=True)
    assert {what for what, _ in leaks(files)} == {"prompt"}
    assert json.loads(files["contents.json"])["has_prompts"] is True


def test_without_head_and_without_a_host(cluster, tmp_path):
    cluster.off = {"h2"}
    files, ended = take(cluster, tmp_path)
    assert ended.exit_code is ExitCode.PARTIAL
    assert set(json.loads(files["contents.json"])["not_taken"]) == {"head", "host h2"}
    assert "no route to host" in ended.detail
    assert "last.line" in files["hosts/h1/procs/head/log"]
    assert leaks(files) == []


def test_of_a_cluster_that_is_down_nobody_expects_a_head(cluster, tmp_path):
    (cluster.environment.cluster_dir("c") / "cluster.yaml").rename(
        cluster.environment.cluster_dir("c") / "down.yaml"
    )
    files, ended = take(cluster, tmp_path)
    assert ended is None
    assert json.loads(files["contents.json"])["not_taken"] == {"head": "the cluster is down"}
    assert "operator/down.yaml" in files


def test_long_logs_are_cut_at_a_line_and_the_former_one_is_not_missed(cluster, tmp_path):
    place = cluster.home("h2") / ".llx/clusters/c/procs/tiny-0"
    (place / "log.1").write_text("former\n")
    files, _ = take(cluster, tmp_path, log_bytes=100)
    text = files["hosts/h2/procs/tiny-0/log"]
    assert text.startswith("2026-11-28T10:00:06")
    assert text.endswith("last.line\n")
    assert "hosts/h2/procs/tiny-0/log.1" not in files
    entries = {each["name"]: each for each in json.loads(files["contents.json"])["files"]}
    assert entries["hosts/h2/procs/tiny-0/log"]["is_tail"] is True
    assert entries["hosts/h1/facts.txt"]["is_tail"] is False


def test_a_host_that_does_not_say_its_secrets_is_left_out(cluster, tmp_path, monkeypatch):
    (cluster.home("h2") / ".llx/clusters/c/keys.json").unlink()
    (cluster.home("h2") / ".llx/clusters/c/hf.token").unlink()
    shell = cluster.shell

    def broken(name):
        found = shell(name)
        run = found.run
        found.run = lambda argv, **more: run(
            ["false"] if name == "h2" and "keys.json" in str(argv) else argv, **more
        )
        return found

    cluster.shell = broken
    files, ended = take(cluster, tmp_path)
    assert not any(name.startswith("hosts/h2") for name in files)
    assert "host h2" in json.loads(files["contents.json"])["not_taken"]
    assert ended.exit_code is ExitCode.PARTIAL


def test_what_is_there_is_not_overwritten(cluster, tmp_path):
    path = tmp_path / "out.tar.gz"
    path.write_text("mine")
    with pytest.raises(ConflictError):
        write_bundle(cluster.session(), path, 1 << 20)
    assert path.read_text() == "mine"


def test_a_bundle_of_nothing_leaves_no_file(llx):
    done = llx("debug", "bundle", "-o", "x.tar.gz")
    assert done.exit_code == ExitCode.NOT_FOUND
    assert not (llx.root / "x.tar.gz").exists()


def test_a_dry_run_lists_and_writes_nothing(cluster, tmp_path, capsys):
    before = set(tmp_path.iterdir())
    cluster.off = {"h2"}
    with pytest.raises(LlxError) as caught:
        show_plan(cluster.session(), 100)
    assert caught.value.exit_code is ExitCode.PARTIAL
    lines = capsys.readouterr().out.splitlines()
    assert f"{100:>10} (of {len(LOG)})  hosts/h1/procs/head/log" in lines
    assert not any("keys.json" in each or each.endswith("token") for each in lines)
    assert set(tmp_path.iterdir()) == before


def test_of_a_cluster_on_this_machine(llx, head, gateway):
    procs = llx.environment.cluster_dir("local") / "procs" / "head"
    (procs / "log").write_text(LOG)
    done = llx("debug", "bundle", "-o", "x.tar.gz")
    assert done.exit_code == ExitCode.OK, done.stderr
    assert done.stdout == "x.tar.gz\n"
    with tarfile.open(llx.root / "x.tar.gz") as archive:
        names = {name.partition("/")[2] for name in archive.getnames()}
    assert names >= {
        "hosts/local/procs/head/log", "hosts/local/facts.txt", "head/status.json",
        "gateways/gateway-0.metrics.txt",
    }  # fmt: skip


def test_a_context_that_is_not_there_is_said(hosts):
    with pytest.raises(NotFoundError):
        write_bundle(hosts.session(context_name="nobody"), None, 1 << 20)
