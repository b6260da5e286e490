"""Who listens on a host, and what somebody without any key hears there.

Compared with the tables of docs/security.md: what the docs do not list must not be open, and what
they list must be there.
"""

import json
import re
from collections.abc import Iterable
from dataclasses import dataclass
from pathlib import Path

from llx.host_ports import HostPorts
from tests.hosts.rig import Host

DOCS = Path(__file__).parents[2] / "docs" / "security.md"

PROCESSES = {
    "agent/shim.py": "shim",  # its arguments are those of what it runs: first
    "llx.gateway.main": "gateway",
    "llx.agent.instance": "instance",
    "ray::SchedulerActor": "scheduler",
    "ray::NodeAgentActor": "node agent",
    "gcs_server": "Ray control store",
    "raylet/raylet": "Ray node",
    "ray::RuntimeEnvAgent": "Ray environments",
    "ray::DashboardAgent": "Ray metrics",
    "ray::": "Ray worker",
    "sshd": "sshd",
}
"""What a command line contains, and what docs call that process; the first that fits."""

# Asked of whatever speaks HTTP. Those of Ray are what its dashboards and agents answer elsewhere.
PATHS = (
    "/ /health /ping /version /metrics /load /v1/models /v1/status /v1/stop /openapi.json /docs "
    "/tokenize /v1/completions /v1/chat/completions /invocations /api/gcs_healthz "
    "/api/local_raylet_healthz /api/version /api/jobs/ /api/profile /nodes /logs /worker/traceback "
    "/static/ /%2e%2e/%2e%2e/etc/passwd"
).split()

KNOCK = r"""
import json, os, socket, ssl, sys, threading
def said(connection, words, timeout_s=10):  # who is silent stays so
    connection.settimeout(timeout_s)
    try:
        connection.sendall(words)
        return connection.recv(400).decode("latin-1")
    except ConnectionError:
        return None  # it hung up on us; what it had said before may have been lost with that
    except OSError:
        return ""
def greeted(address):  # ZeroMQ speaks first, and hangs up on who does not know its language
    with socket.create_connection(address, 3) as silent:
        return said(silent, b"") or ""
def get(address, path, timeout_s=120):  # a schema is made when it is first asked for
    with socket.create_connection(address, 3) as plain:
        words = f"GET {path} HTTP/1.1\r\nHost: x\r\nConnection: close\r\n\r\n".encode()
        return said(plain, words, timeout_s)
def over_tls(address):  # as gRPC does
    context = ssl._create_unverified_context()
    if os.environ.get("TLS_DIR"):
        context.load_cert_chain(*(f"{os.environ['TLS_DIR']}/host.{end}" for end in ("pem", "key")))
    context.set_alpn_protocols(["h2"])
    try:
        plain = socket.create_connection(address, 10)
        plain.settimeout(30)
        with context.wrap_socket(plain) as secured:
            preface = b"PRI * HTTP/2.0\r\n\r\nSM\r\n\r\n"
            return said(secured, preface + bytes(3) + b"\x04" + bytes(5)) or ""
    except OSError:
        return ""
def knock(each, found):
    kind, where, port, paths = each
    if kind == "unix":
        with socket.socket(socket.AF_UNIX) as local:
            try:
                local.connect("\0" + where[1:] if where.startswith("@") else where)
                found.append([each, said(local, b"GET / HTTP/1.1\r\n\r\n") or "", "", []])
            except OSError as error:
                found.append([each, type(error).__name__, "", []])
        return
    address = (where, port)
    try:
        plain = get(address, "/", 30)  # many are silent to the end
        if plain is None:
            plain = greeted(address)
    except OSError as error:
        found.append([each, type(error).__name__, "", []])
        return
    opened = []
    if plain.startswith("HTTP/"):
        opened = [p for p in paths if (get(address, p) or "").partition(" ")[2].startswith("2")]
    found.append([each, plain, over_tls(address), opened])
found, threads = [], []
for each in json.load(sys.stdin):
    threads.append(threading.Thread(target=knock, args=(each, found)))
    threads[-1].start()
for each in threads:
    each.join()
json.dump(found, sys.stdout)
"""


@dataclass(frozen=True)
class Listener:
    """A socket that listens. `port`: 0 of a unix socket, whose `address` is its path."""

    kind: str
    address: str
    port: int
    process: str

    @property
    def is_local(self) -> bool:
        """Whether only this host's processes reach it."""
        return self.kind == "unix" or self.address.startswith("127.") or self.address == "::1"


@dataclass(frozen=True)
class Heard:
    """What a stranger hears of a listener: in one word, and paths that are answered with 200."""

    word: str
    opened: tuple[str, ...]


def listeners(host: Host) -> set[Listener]:
    """All of a host, sshd's apart."""
    commands = dict(
        line.split(maxsplit=1)
        for line in host.x("ps", "-eo", "pid=,args=", "-ww").stdout.splitlines()
        if " " in line.strip()
    )
    found = set()
    for line in host.x("ss", "-Hlntuxp").stdout.splitlines():
        kind, _, _, _, local = line.split()[:5]
        pids = re.findall(r"pid=(\d+)", line)
        names = {_name_of(commands.get(pid, "?")) for pid in pids} or {"?"}
        if kind.startswith("u_"):
            path = local
            if not local.startswith(("@", "/")):  # as it was bound, from where its process was
                path = host.x("readlink", f"/proc/{pids[0]}/cwd").stdout.strip() + f"/{local}"
            each = Listener("unix", path, 0, "/".join(sorted(names)))
        else:
            address, _, port = local.rpartition(":")
            plain = address.strip("[]").removeprefix("::ffff:").partition("%")[0]
            each = Listener(kind, plain, int(port), "/".join(sorted(names)))
        if "sshd" not in names:
            found.add(each)
    return found


def _name_of(command: str) -> str:
    return next((name for part, name in PROCESSES.items() if part in command), command[:80])


def hear(
    listening: Iterable[Listener], host: Host, stranger: Host, tls_dir: str = ""
) -> dict[Listener, Heard]:
    """What somebody hears who has no key: on another host, or as another user on this one."""
    heard = {}
    local = [each for each in listening if each.is_local and each.kind != "udp"]
    distant = [each for each in listening if not each.is_local and each.kind != "udp"]
    nobody = ["setpriv", "--reuid", "65534", "--regid", "65534", "--clear-groups"]
    for place, words, many in ((host, nobody, local), (stranger, [], distant)):
        asked = {}
        for each in many:
            address = host.address if each.address in ("*", "0.0.0.0", "::") else each.address
            asked[each.kind, address, each.port] = each
        script = json.dumps([[*key, PATHS] for key in asked])
        environment = ["env", f"TLS_DIR={tls_dir}"]
        done = place.x(
            *words, *environment, "/usr/bin/python3", "-c", KNOCK, input=script, check=True,
            timeout=300,
        )  # fmt: skip
        for (kind, address, port, _), plain, secured, opened in json.loads(done.stdout):
            heard[asked[kind, address, port]] = Heard(_word(plain, secured), tuple(opened))
    return heard


def _word(plain: str, secured: str) -> str:
    if secured:
        return "TLS"
    if plain.startswith("HTTP/"):
        return f"HTTP {plain.split()[1]}"
    if plain.startswith("\xff"):
        return "ZeroMQ"
    if "not a KV connection" in plain:
        return "KV"
    return {"": "nothing", "PermissionError": "refused"}.get(plain, plain)


# ---------------------------------------------------------------------- the docs' tables


@dataclass(frozen=True)
class Row:
    """A line of the table of sockets."""

    processes: frozenset[str]
    ports: range
    is_local: bool
    words: frozenset[str]
    is_vllms: bool


def documented(ports: HostPorts, named: dict[str, int]) -> list[Row]:
    """The table of sockets, with the numbers of this cluster; `named`: ports of their own."""
    return [
        Row(
            _words(processes),
            _ports(port, ports, named),
            "loopback" in place or port == "unix",
            _words(heard),
            "with vLLM" in place,
        )
        for processes, port, place, _, heard in _table("sockets")
    ]


def documented_open(*, has_keys: bool) -> set[tuple[str, str]]:
    """Process and path of every endpoint that answers a stranger."""
    return {
        (process, path)
        for process, paths, when, _ in _table("open")
        for path in _words(paths)
        if not (has_keys and "without API keys" in when)
    }


def row_of(listener: Listener, rows: Iterable[Row]) -> Row | None:
    for row in rows:
        is_there = listener.port in row.ports and listener.is_local == row.is_local
        if is_there and row.processes & set(listener.process.split("/")):
            return row
    return None


def _table(name: str) -> list[list[str]]:
    text = DOCS.read_text().split(f"<!-- table: {name} -->\n", 1)[1].split("\n\n", 1)[0]
    lines = [line.strip("|").split("|") for line in text.splitlines() if line.startswith("|")]
    return [[cell.strip() for cell in line] for line in lines[2:]]


def _words(cell: str) -> frozenset[str]:
    return frozenset(each.strip(" `") for each in cell.split(","))


def _ports(text: str, ports: HostPorts, named: dict[str, int]) -> range:
    text = text.replace("`", "")
    if text == "unix":
        return range(1)
    if text == "any":
        return range(1, 65536)
    if text in named:
        return range(named[text], named[text] + 1)
    first, _, last = text.removeprefix("first_port").strip(" +").partition(" … ")
    return range(ports.first + int(first), ports.first + int(last or first) + 1)


def check_sockets(
    hosts: list[Host],
    stranger: Host,
    ports: HostPorts,
    named: dict[str, int],
    *,
    has_keys: bool,
    has_vllm: bool,
) -> None:
    """See that what listens, and what a stranger hears there, is what the docs say.

    What has ended before it was heard says nothing.
    """
    rows, used, opened, wrong = documented(ports, named), set(), set(), []
    for host in hosts:
        listening = listeners(host)
        heard = hear(listening, host, stranger)
        for each in sorted(listening, key=lambda it: (it.process, it.port, it.address)):
            row = row_of(each, rows)
            what = heard.get(each, Heard("nothing", ()))
            used.add(row)
            opened |= {(name, path) for name in each.process.split("/") for path in what.opened}
            if (row is None or what.word not in row.words) and each in listeners(host):
                wrong.append(f"{host.name}: {each}: {what}: {'no row' if row is None else row}")
    assert not wrong, "\n".join(wrong)
    rows = [each for each in rows if has_vllm or not each.is_vllms]
    assert set(rows) <= used, f"in the docs alone: {set(rows) - used}"
    expected = documented_open(has_keys=has_keys)
    assert opened == expected, f"in the docs alone: {expected - opened}; not: {opened - expected}"
