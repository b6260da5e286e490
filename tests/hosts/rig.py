"""Hosts made of Linux namespaces: own root, network, hostname and processes, and a real sshd.

    this machine ── 10.77.N.1 ──┐ a switch: a bridge in a namespace of its own
                                ├── h1 10.77.N.11   sees of this machine the operating system
                                └── h2 10.77.N.12   only, writes to its own disk

Needs root. Everything ends with the process that made it, also by SIGKILL; what that cannot clean
(a directory, a cable) the next rig of the same number does. Start rigs and hosts from the main
thread: the tie to their maker is one to the thread.
"""

import contextlib
import fcntl
import os
import shutil
import signal
import socket
import subprocess
import sys
import tempfile
import time
from collections.abc import Iterator
from dataclasses import dataclass, replace
from pathlib import Path
from typing import Any

HERE = Path(__file__).parent
USER, UID = "llx", 4242
TOOLS = ("ip", "unshare", "nsenter", "setpriv", "sshd", "ssh-keygen", "nft")

_PATH = "/usr/local/sbin:/usr/local/bin:/usr/sbin:/usr/bin:/sbin:/bin"
_DEADLINE_S = 20.0
_MAX_RIGS = 64


@dataclass(frozen=True)
class HostOptions:
    """What a host is like.

    Attributes:
        binds: Directories and files of this machine that it sees, read-only, at the same place.
        hide: Shell patterns of what it lacks, such as ``/usr/bin/python3*``.
        size: Its disk, if in memory; takes only what is used.
        keeps_disk: Its disk is on ours, and outlives a power cycle.
        sshd: More lines of its sshd_config.
    """

    binds: tuple[Path, ...] = ()
    hide: tuple[str, ...] = ()
    size: str = "6g"
    keeps_disk: bool = False
    sshd: str = ""


def why_no_hosts() -> str | None:
    """Why this machine cannot make hosts; None if it can."""
    if os.geteuid() != 0:
        return "needs root"
    missing = [tool for tool in TOOLS if shutil.which(tool, path=_path()) is None]
    if missing:
        return f"missing {', '.join(missing)}: apt-get install openssh-server nftables iproute2"
    command = "unshare --mount --net --pid --fork ip link add name t0 type veth peer name t1"
    tried = _run(*command.split(), check=False)
    return f"no namespaces: {tried.stderr.strip()}" if tried.returncode else None


def python_binds(python: Path) -> tuple[Path, ...]:
    """What `python`, of a virtual environment say, needs to run on a host."""
    prefix = python.parent.parent
    wanted = [prefix, python.resolve().parent.parent]
    config = prefix / "pyvenv.cfg"
    if config.exists():
        pairs = (line.partition("=") for line in config.read_text().splitlines())
        wanted += [Path(value.strip()).parent for key, _, value in pairs if key.strip() == "home"]
    for path in prefix.glob("lib/python3*/site-packages/*.pth"):  # editable installs
        lines = path.read_text().splitlines()
        wanted += [Path(line) for line in lines if line.startswith("/") and Path(line).is_dir()]
    return tuple(dict.fromkeys(each for each in wanted if each != Path("/usr")))


class Host:
    """One namespace host. Made by `Rig`."""

    def __init__(self, rig: "Rig", number: int) -> None:
        self.name = f"h{number}"
        self.address = f"{rig.network}.{10 + number}"
        self.options = HostOptions()
        self._rig = rig
        self._number = number
        self._directory = rig.directory / self.name
        self._directory.mkdir()
        self._process: subprocess.Popen[bytes] | None = None
        self._relay: subprocess.Popen[bytes] | None = None
        self.init = 0
        shutil.copy(f"{rig.key}.pub", self._directory / "authorized_keys")
        self.make_host_key()

    @property
    def is_on(self) -> bool:
        return self._process is not None

    @property
    def host_key(self) -> str:
        """Type and key, as in known_hosts."""
        return " ".join(self._key_path.with_suffix(".pub").read_text().split()[:2])

    @property
    def _key_path(self) -> Path:
        return self._directory / "ssh_host_ed25519_key"

    def make_host_key(self) -> None:
        """A new host key, from the next power cycle on: as if installed anew."""
        self._key_path.unlink(missing_ok=True)
        _make_key(self._key_path, self.name)

    # ------------------------------------------------------------------ power

    def on(self, options: HostOptions | None = None) -> None:
        """Switch it on; returns when sshd answers."""
        self.start(options)
        self.wait_for_sshd()

    def start(self, options: HostOptions | None = None) -> None:
        """Switch it on, without waiting for sshd."""
        assert not self.is_on, f"{self.name} is on"
        self.options = options or self.options
        binds = sorted(set(self.options.binds))  # parents first
        environment = {
            "PATH": _PATH,
            "LANG": "C.UTF-8",
            "H_NAME": self.name,
            "H_DIR": str(self._directory),
            "H_SIZE": self.options.size,
            "H_KEEP": str(int(self.options.keeps_disk)),
            "H_USER": USER,
            "H_UID": str(UID),
            "H_HOSTS": "\n".join(f"{each.address} {each.name}" for each in self._rig.all_hosts),
            "H_BINDS": "\n".join(f"{each}\t{each}" for each in binds),
            "H_SSHD": self.options.sshd,
            "H_HIDE": "\n".join(self.options.hide),
        }
        with (self._directory / "init.log").open("wb") as log:
            self._process = _spawn(
                "unshare", "--mount", "--uts", "--ipc", "--net", "--pid", "--fork",
                "--kill-child=KILL", "/bin/bash", str(HERE / "host_init.sh"),
                env=environment, stdout=log, stderr=log,
            )  # fmt: skip
        self.init = self._child_of(self._process)
        self._rig.plug_in(
            self.name, self.init, f"02:4c:58:{self._rig.number:02x}:00:{self._number:02x}"
        )
        _ip(self.init, "link set lo up", f"addr add {self.address}/24 dev eth0",
            "link set eth0 up", f"route add default via {self._rig.network}.1")  # fmt: skip

    def wait_for_sshd(self) -> None:
        """Wait for the banner of its sshd."""
        deadline = time.monotonic() + _DEADLINE_S
        while time.monotonic() < deadline and self._process and self._process.poll() is None:
            with (
                contextlib.suppress(OSError),
                socket.create_connection((self.address, 22), 0.5) as connection,
            ):
                if connection.recv(8).startswith(b"SSH-2.0"):
                    return
            time.sleep(0.01)
        log = (self._directory / "init.log").read_text()
        raise RuntimeError(f"{self.name} does not come up: {log}")

    def off(self, *, is_silent: bool = True) -> None:
        """Power cut. Silent as a real one: no FIN and no RST gets out of it."""
        if self._process is None:
            return
        self._stop_relay()
        if is_silent:
            self._rig.unplug(self.name)
        if self._process.poll() is None:
            os.kill(self.init, signal.SIGKILL)
        self._process.wait()
        self._process = None
        self._rig.unplug(self.name)

    def restart(self, **changes: Any) -> None:
        """Power cycle, with other options."""
        self.off()
        self.on(replace(self.options, **changes))

    def erase(self) -> None:
        """Take away what is left of its disk."""
        shutil.rmtree(self._directory / "layer", ignore_errors=True)

    # ------------------------------------------------------------------ inside

    def x(
        self, *argv: str, user: str | None = None, check: bool = False, **options: Any
    ) -> "subprocess.CompletedProcess[str]":
        """Run a command in it, as root or as `user` "llx"."""
        return _run(
            *self._inside(user), *argv, check=check, env=_inner_environment(user), **options
        )

    def spawn(
        self, *argv: str, user: str | None = None, **options: Any
    ) -> "subprocess.Popen[bytes]":
        """Start a process in it; whoever starts it ends it, or the host's next power cut."""
        return _spawn(*self._inside(user), *argv, env=_inner_environment(user), **options)

    def write(self, path: str, content: str, *, mode: int = 0o644) -> None:
        """Write a file in it, as root."""
        script = 'mkdir -p "${1%/*}" && cat >"$1" && chmod "$2" "$1"'
        self.x("sh", "-c", script, "sh", path, f"{mode:o}", input=content, check=True)

    def cover(self, path: str, content: str) -> None:
        """Have `path` read as `content`, in /proc say, until the next power cycle."""
        stand_in = f"/run/cover{path.replace('/', '_')}"
        self.write(stand_in, content)
        self.x("mount", "--bind", stand_in, path, check=True)

    def uncover(self, path: str) -> None:
        """End what `cover` does."""
        self.x("umount", path, check=True)

    def own_paths(self, *folders: str) -> list[str]:
        """All that lies below `folders`, but for what it sees of this machine."""
        skipped = [word for each in self.options.binds for word in ("-path", each, "-prune", "-o")]
        found = self.x("find", *folders, "-mindepth", "1", *map(str, skipped), "-print").stdout
        shown = {str(parent) for each in self.options.binds for parent in each.parents}
        return [path for path in found.splitlines() if path not in shown]

    def pids(self) -> list[int]:
        """Its processes, by their numbers here, but for process 1."""
        namespace = Path(f"/proc/{self.init}/ns/pid").readlink()
        found = []
        for entry in Path("/proc").iterdir():
            with contextlib.suppress(OSError):
                if entry.name.isdigit() and (entry / "ns" / "pid").readlink() == namespace:
                    found.append(int(entry.name))
        return sorted(each for each in found if each != self.init)

    def processes(self, pattern: str = "") -> dict[int, str]:
        """Its processes whose command line contains `pattern`, by their numbers here."""
        found = {}
        for pid in self.pids():
            with contextlib.suppress(OSError):
                raw = Path(f"/proc/{pid}/cmdline").read_bytes()
                line = raw.replace(b"\0", b" ").decode(errors="replace").strip()
                if line and pattern in line:
                    found[pid] = line
        return found

    def kill(self, pattern: str, number: int = signal.SIGKILL) -> int:
        """Signal every process whose command line contains `pattern`; how many there were."""
        found = self.processes(pattern)
        for pid in found:
            with contextlib.suppress(ProcessLookupError):
                os.kill(pid, number)
        return len(found)

    def freeze(self) -> None:
        """Stop every process: a host that hangs, though its kernel still acknowledges."""
        self._signal_all(signal.SIGSTOP)

    def thaw(self) -> None:
        """Let them go on."""
        self._signal_all(signal.SIGCONT)

    # ------------------------------------------------------------------ network faults

    def cable(self, *, is_in: bool) -> None:
        """Pull the cable out, or put it back."""
        self._rig.ip(f"link set {self.name} {'up' if is_in else 'down'}")

    def drop(self, *peers: "Host | str") -> None:
        """Silently lose all packets from and to `peers`; of everybody without any."""
        lines = []
        for chain, hook, interface, side in (
            ("in", "input", 'iifname "eth0"', "saddr"),
            ("out", "output", 'oifname "eth0"', "daddr"),
        ):
            lines.append(
                f"add chain inet fault {chain} {{ type filter hook {hook} priority -10; }}"
            )
            for peer in peers or (None,):
                address = peer.address if isinstance(peer, Host) else peer
                match = f"ip {side} {address}" if address else ""
                lines.append(f"add rule inet fault {chain} {interface} {match} drop")
        self._nft("add table inet fault", *lines)

    def heal(self) -> None:
        """End what `drop` does."""
        self._nft("add table inet fault", "delete table inet fault")

    def delay(self, ms: float) -> None:
        """Each packet takes `ms` longer, either way; 0 ends it."""
        self._stop_relay()
        if ms:
            near, far = f"{self.name}n", f"{self.name}f"
            self._rig.ip(
                f"link add name {near} type veth peer name {far}", f"link set {near} up",
                f"link set {far} master bridge up", f"link set {self.name} nomaster",
            )  # fmt: skip
            enter = ["nsenter", "-t", str(self._rig.switch.pid), "-n"]
            words = [sys.executable, str(HERE / "relay.py"), self.name, near, str(ms)]
            self._relay = _spawn(*enter, *words, stdout=subprocess.PIPE)
            assert self._relay.stdout is not None
            assert self._relay.stdout.readline() == b"ready\n"

    # ------------------------------------------------------------------ within

    def _inside(self, user: str | None) -> list[str]:
        become = [] if user is None else ["-S", str(UID), "-G", str(UID)]
        enter = ["nsenter", "-t", str(self.init), "-m", "-u", "-i", "-n", "-p", "-r", "-w"]
        return [*enter, *become, "--"]

    def _stop_relay(self) -> None:
        if self._relay is not None:
            self._relay.kill()
            self._relay.communicate()
            self._relay = None
            self._rig.ip(f"link set {self.name} master bridge", f"link del {self.name}n")

    def _signal_all(self, number: int) -> None:
        for pid in self.pids():
            with contextlib.suppress(ProcessLookupError):
                os.kill(pid, number)

    def _nft(self, *lines: str) -> None:
        _run("nsenter", "-t", str(self.init), "-n", "nft", "-f", "-", input="\n".join(lines) + "\n")

    def _child_of(self, process: "subprocess.Popen[bytes]") -> int:
        deadline = time.monotonic() + _DEADLINE_S
        children = Path(f"/proc/{process.pid}/task/{process.pid}/children")
        while process.poll() is None and time.monotonic() < deadline:
            with contextlib.suppress(OSError):
                if found := children.read_text().split():
                    return int(found[0])
            time.sleep(0.002)
        raise RuntimeError(f"{self.name}: {(self._directory / 'init.log').read_text()}")


class Rig:
    """A switch, hosts on it, and an operator's home directory."""

    def __init__(self) -> None:
        self.number, self._lock = _free_number()
        self.directory = _directory(self.number)
        self.network = f"10.77.{self.number}"
        self.home = self.directory / "home"
        self.key = self.home / ".ssh" / "id_ed25519"
        self._uplink = f"llx-rig{self.number}"
        self._clean()
        self.key.parent.mkdir(parents=True, mode=0o700)
        _make_key(self.key, "operator")
        self.all_hosts: list[Host] = []
        self.hosts: list[Host] = []
        self.switch = _spawn("unshare", "--net", "sleep", "infinity")
        _wait_for_own_network(self.switch)
        self.ip(
            "link add name bridge type bridge forward_delay 0 stp_state 0", "link set dev bridge up"
        )
        peer = f"peer name uplink netns {self.switch.pid}"
        _ip(
            None,
            f"link add name {self._uplink} type veth {peer}",
            f"addr add {self.network}.1/24 dev {self._uplink}",
            f"link set {self._uplink} up",
        )
        self.ip("link set dev uplink master bridge up")

    def __getitem__(self, name: str) -> Host:
        return next(host for host in self.hosts if host.name == name)

    def up(self, count: int, options: HostOptions | None = None) -> None:
        """Have exactly `count` hosts, freshly installed, and a fresh home."""
        self.down()
        while len(self.all_hosts) < count:
            self.all_hosts.append(Host(self, len(self.all_hosts) + 1))
        self.hosts = self.all_hosts[:count]
        for host in self.hosts:
            host.start(options or HostOptions())
        for host in self.hosts:
            host.wait_for_sshd()
        self._furnish_home()

    def down(self) -> None:
        """Switch all hosts off and forget their disks."""
        for host in self.hosts:
            host.off()
            host.erase()
        self.hosts = []

    def close(self) -> None:
        """Leave nothing behind."""
        self.down()
        self.switch.kill()
        self.switch.wait()
        self._clean()
        shutil.rmtree(self.directory)
        self._lock.close()

    def operator_environment(self) -> dict[str, str]:
        """The environment of somebody who works on these hosts: own home, no agent."""
        xdg = {f"XDG_{name.upper()}_HOME": str(self.home / name) for name in
               ("config", "state", "data", "cache")}  # fmt: skip
        path = os.environ.get("PATH", _PATH)
        return {"HOME": str(self.home), "PATH": path, "LANG": "C.UTF-8", **xdg}

    def cluster_hosts(self, *, user: str = USER) -> list[dict[str, str]]:
        """`hosts` of a cluster.yaml."""
        return [
            {
                "name": each.name,
                "address": each.address,
                "user": user,
                "identity_file": str(self.key),
            }
            for each in self.hosts
        ]

    def trust(self) -> None:
        """Write the hosts' present keys to the operator's known_hosts."""
        lines = [f"{host.address} {host.host_key}\n" for host in self.hosts]
        (self.home / ".ssh" / "known_hosts").write_text("".join(lines))

    # ------------------------------------------------------------------ for hosts

    def ip(self, *commands: str) -> None:
        """Commands of `ip`, at the switch."""
        _ip(self.switch.pid, *commands)

    def plug_in(self, name: str, init: int, hardware_address: str) -> None:
        """Connect a host. A fixed address: after a quick power cycle the old one is still known."""
        peer = f"peer name eth0 address {hardware_address} netns {init}"
        self.ip(
            f"link add name {name} type veth {peer}",
            f"link set {name} master bridge up",
        )

    def unplug(self, name: str) -> None:
        """Take a host's cable away, if it is there."""
        _run("nsenter", "-t", str(self.switch.pid), "-n", "ip", "link", "del", name, check=False)

    def _furnish_home(self) -> None:
        for entry in self.home.iterdir():
            if entry.name != ".ssh":
                shutil.rmtree(entry) if entry.is_dir() else entry.unlink()
        for entry in self.key.parent.iterdir():
            if entry.stem != self.key.name:
                entry.unlink()
        self.trust()

    def _clean(self) -> None:
        _run("ip", "link", "del", self._uplink, check=False)
        for entry in self.directory.iterdir():
            if entry.name != "lock":
                shutil.rmtree(entry) if entry.is_dir() else entry.unlink()


@contextlib.contextmanager
def new_rig() -> Iterator[Rig]:
    """A rig that leaves nothing behind."""
    rig = Rig()
    try:
        yield rig
    finally:
        rig.close()


def _directory(number: int) -> Path:
    return Path(tempfile.gettempdir()) / f"llx-rig-{number}"


def _free_number() -> tuple[int, Any]:
    """A number no living rig has; the lock goes with the process."""
    for number in range(_MAX_RIGS):
        directory = _directory(number)
        with contextlib.suppress(OSError):  # another process has it, or is taking it away
            directory.mkdir(mode=0o700, exist_ok=True)
            lock = (directory / "lock").open("w")
            try:
                fcntl.flock(lock, fcntl.LOCK_EX | fcntl.LOCK_NB)
                if os.path.samestat(os.fstat(lock.fileno()), (directory / "lock").stat()):
                    return number, lock
            except BaseException:
                lock.close()
                raise
            lock.close()
    raise RuntimeError(f"{_MAX_RIGS} rigs are running")


def _make_key(path: Path, comment: str) -> None:
    _run("ssh-keygen", "-q", "-t", "ed25519", "-N", "", "-C", comment, "-f", str(path), input="y\n")


def _wait_for_own_network(process: "subprocess.Popen[bytes]") -> None:
    ours = Path("/proc/self/ns/net").readlink()
    deadline = time.monotonic() + _DEADLINE_S
    while Path(f"/proc/{process.pid}/ns/net").readlink() == ours:
        if process.poll() is not None or time.monotonic() > deadline:
            raise RuntimeError("the switch does not start")
        time.sleep(0.002)


def _ip(pid: int | None, *commands: str) -> None:
    """Commands of `ip`, in the network of process `pid`; None: in ours."""
    enter = [] if pid is None else ["nsenter", "-t", str(pid), "-n"]
    _run(*enter, "ip", "-batch", "-", input="\n".join(commands) + "\n")


def _inner_environment(user: str | None) -> dict[str, str]:
    home = "/root" if user is None else f"/home/{user}"
    return {"PATH": _PATH, "HOME": home, "LANG": "C.UTF-8", "USER": user or "root"}


def _path() -> str:
    return f"{os.environ.get('PATH', '')}:{_PATH}"


def _spawn(*argv: str, **options: Any) -> "subprocess.Popen[bytes]":
    """A process that is killed when this thread ends, however that comes about."""
    tied = ["setpriv", "--pdeathsig", "KILL", *argv]
    return subprocess.Popen(tied, **{"stdin": subprocess.DEVNULL, **options})


def _run(*argv: str, check: bool = True, **options: Any) -> "subprocess.CompletedProcess[str]":
    options.setdefault("env", {**os.environ, "PATH": _path()})
    if "input" not in options:
        options["stdin"] = subprocess.DEVNULL
    done = subprocess.run(argv, capture_output=True, text=True, **options)
    if check and done.returncode:
        raise RuntimeError(f"{' '.join(argv)}: {done.returncode}: {done.stderr}")
    return done
