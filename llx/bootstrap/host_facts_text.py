"""Reads what ``host_facts.sh`` says on a host. Pure; leaves out whatever makes no sense."""

import csv
import ipaddress
import json
import re
from collections import defaultdict
from collections.abc import Iterable, Iterator, Mapping, Sequence
from dataclasses import dataclass
from pathlib import PurePosixPath

from llx.agent.devices import Device
from llx.bootstrap.facts import ModelFact
from llx.bootstrap.host_facts import (
    Claim,
    DiskFact,
    GpuUser,
    HostFacts,
    Listener,
    LlxProcess,
    PythonFact,
    ShimFact,
)

_BEGIN = "llx-facts 1"
_VERSION = re.compile(r"(\d+)\.(\d+)\.(\d+)")
_GLIBC = re.compile(r"glibc (\d+)\.(\d+)")
_CLUSTER = re.compile(r"/clusters/([a-z0-9-]+)(?=[/ ]|$)")
_NETWORK_FILE_SYSTEMS = frozenset(
    {"nfs", "nfs4", "cifs", "smb2", "smb3", "lustre", "gpfs", "ceph", "afs", "fuse.sshfs", "gfs2"}
)
_YES = frozenset({"1", "yes", "y", "true", "t", "on"})
_COARSE_CLOCK_S = 0.5
"""A clock that tells whole seconds is on average this much later than it says."""


def parse(text: str, *, began: float = 0.0, heard: float = 0.0) -> HostFacts:
    """The facts in the script's output.

    Args:
        text: All of its standard output, with whatever came before it.
        began: Our clock before the script was started.
        heard: Our clock when the host's time arrived.

    Raises:
        ValueError: It is not that script's output, or not all of it.
    """
    noise, lines = _split(text)
    rows: dict[str, list[list[str]]] = defaultdict(list)
    for line in lines:
        key, *fields = line.split("\t")
        rows[key].append(fields)
    if not rows["end"]:
        raise ValueError("it ends too early")
    said = _Said(rows)
    offset, error = _clock(said.first("clock"), began, heard)
    uid = int(said.at("user", 1))
    identity, kind = said.at("home_identity", 0), said.at("home_identity", 1)
    home_disk, boot_id = _disk(said, "home"), said.first("boot_id")
    is_remote = kind in _NETWORK_FILE_SYSTEMS
    return HostFacts(
        host="",
        hostname=said.first("hostname"),
        user=said.first("user"),
        uid=uid,
        home=PurePosixPath(said.first("home")),
        is_home_writable=bool(rows["home_writable"]),
        has_sudo=uid == 0 or bool(rows["sudo"]),
        noise=noise,
        system=said.at("kernel", 0),
        kernel=said.at("kernel", 1),
        machine=said.at("kernel", 2),
        glibc=_glibc(said.first("glibc")),
        cpu_count=_number(said.first("cpus")) or 1,
        memory_available_bytes=_memory_available(said),
        memory_bytes=_memory(said, "MemTotal"),
        home_disk=home_disk,
        models_disk=_disk(said, "models"),
        tmp_disk=_disk(said, "tmp"),
        shm_disk=_disk(said, "shm"),
        home_identity=_home_identity(said, is_remote, home_disk, boot_id, identity),
        is_home_remote=is_remote,
        clock_offset_s=offset,
        clock_error_s=error,
        server_address=_server_address(said.first("ssh")),
        addresses=tuple(dict.fromkeys(said.column("address"))),
        machine_id=said.first("machine_id"),
        boot_id=boot_id,
        pythons=_unique(_pythons(rows["python"])),
        override=next(iter(_pythons(rows["override"])), None),
        has_nvidia_driver=bool(rows["nvidia_driver"]),
        driver_version=next((row[5] for row in _gpu_rows(rows["gpu"])), ""),
        gpus=tuple(_gpus(rows["gpu"])),
        gpu_users=tuple(_gpu_users(rows["gpu_user"])),
        held_gpus=frozenset(said.column("held_gpu")),
        listeners=tuple(_listeners(rows["listener"])),
        claim=_claim(said.first("claim")),
        has_state=bool(rows["state"]),
        release=said.first("release"),
        node_environments=dict(_node_environments(rows["node"])),
        models=frozenset(said.column("model")),
        unfinished=dict(_sizes(rows["unfinished"])),
        model_sources={row[0]: row[1].strip() for row in rows["model"] if "".join(row[1:]).strip()},
        model_paths=dict(_model_paths(rows["model_path"])),
        processes=tuple(_processes(rows["process"])),
        llx_processes=tuple(_llx_processes(rows["llx_process"])),
        missing_tools=frozenset(said.column("missing")),
        ephemeral_ports=_range(said, "ephemeral_ports"),
        open_files=_number(said.at("open_files", 1)),
        is_logout_deadly=_is_logout_deadly(rows["logind"], said.first("user")),
    )


@dataclass(frozen=True, slots=True)
class _Said:
    """The lines by their key; what is missing reads as empty."""

    rows: Mapping[str, list[list[str]]]

    def at(self, key: str, index: int) -> str:
        fields = next(iter(self.rows.get(key, [])), [])
        return fields[index].strip() if index < len(fields) else ""

    def first(self, key: str) -> str:
        return self.at(key, 0)

    def column(self, key: str) -> list[str]:
        return [fields[0] for fields in self.rows.get(key, []) if fields and fields[0]]


def _split(text: str) -> tuple[str, list[str]]:
    """What came before the script's own output, and its lines."""
    lines = text.splitlines()
    try:
        begin = lines.index(_BEGIN)
    except ValueError:
        raise ValueError("it does not begin") from None
    return "\n".join(lines[:begin]).strip(), lines[begin + 1 :]


def _number(text: str) -> int | None:
    return int(text) if text.isdigit() else None


def _range(said: _Said, key: str) -> tuple[int, int] | None:
    first, last = _number(said.at(key, 0)), _number(said.at(key, 1))
    return None if first is None or last is None else (first, last)


def _clock(text: str, began: float, heard: float) -> tuple[float | None, float]:
    """How far the host's clock is ahead, taken to be read halfway; and by how much that may err."""
    seconds, _, fraction = text.partition(".")
    if not seconds.isdigit():
        return None, 0.0
    error = (heard - began) / 2
    if fraction.isdigit():
        there = float(f"{seconds}.{fraction}")
    else:
        there, error = int(seconds) + _COARSE_CLOCK_S, error + _COARSE_CLOCK_S
    return there - (began + heard) / 2, error


def _glibc(text: str) -> tuple[int, int] | None:
    found = _GLIBC.match(text)
    return (int(found[1]), int(found[2])) if found else None


def _server_address(text: str) -> str:
    """The third of client address, client port, server address, server port."""
    fields = text.split()
    address = fields[2].partition("%")[0] if len(fields) == 4 else ""
    try:
        parsed = ipaddress.ip_address(address)
    except ValueError:
        return ""
    mapped = parsed.ipv4_mapped if isinstance(parsed, ipaddress.IPv6Address) else None
    return str(mapped or parsed)


def _memory(said: _Said, name: str) -> int | None:
    for fields in said.rows.get("meminfo", []):
        if fields[0] == name:
            return int(fields[1]) * 1024
    return None


def _memory_available(said: _Said) -> int | None:
    """What can be had: the machine's, or that of a control group it is in if that is less."""
    available = _memory(said, "MemAvailable")
    for limit, used, cache in (row for row in said.rows.get("cgroup", []) if len(row) == 3):
        if limit.isdigit() and used.isdigit():
            left = max(0, int(limit) - int(used) + (_number(cache) or 0))
            available = left if available is None else min(available, left)
    return available


def _disk(said: _Said, name: str) -> DiskFact | None:
    for fields in said.rows.get("disk", []):
        if fields[0] == name and fields[1].isdigit() and fields[2].isdigit():
            return DiskFact(int(fields[1]) * 1024, int(fields[2]) * 1024, fields[3])
    return None


def _node_environments(rows: Iterable[Sequence[str]]) -> Iterator[tuple[str, str]]:
    for name, version in (row for row in rows if len(row) == 2):
        yield name, version if _VERSION.fullmatch(version) else ""


def _sizes(rows: Iterable[Sequence[str]]) -> Iterator[tuple[str, int]]:
    for path, size in (row for row in rows if len(row) == 2):
        yield path, (_number(size) or 0) * 1024


def _home_identity(
    said: _Said, is_remote: bool, disk: DiskFact | None, boot_id: str, identity: str
) -> str:
    """Equal on two hosts just when their home directories are one."""
    if is_remote:
        return f"{disk.source} {said.first('home')}" if disk is not None else ""
    return f"{boot_id} {identity}" if boot_id and identity else ""


def _pythons(rows: Iterable[Sequence[str]]) -> Iterator[PythonFact]:
    for path, version, prefix, venv, packages in (row for row in rows if len(row) == 5):
        if found := _VERSION.fullmatch(version):
            numbers = (int(found[1]), int(found[2]), int(found[3]))
            pairs = (each.partition("=") for each in packages.split() if "=" in each)
            versions = {name: value for name, _, value in pairs}
            yield PythonFact(path, numbers, prefix, venv == "venv", versions)


def _unique(pythons: Iterable[PythonFact]) -> tuple[PythonFact, ...]:
    """One per version and prefix: ``python3`` and ``python3.11`` are often the same."""
    found: dict[tuple[object, ...], PythonFact] = {}
    for each in pythons:
        found.setdefault((each.version, each.prefix), each)
    return tuple(found.values())


def _is_logout_deadly(rows: Iterable[Sequence[str]], user: str) -> bool:
    """Whether logind ends a user's processes at logout; `rows` are its settings in order.

    The last word counts on whether it does so at all; users add up, an empty list begins anew.
    """
    does_kill = False
    users: dict[str, list[str]] = {"KillOnlyUsers": [], "KillExcludeUsers": []}
    for key, value in (row for row in rows if len(row) == 2):
        if key == "KillUserProcesses":
            does_kill = value.strip().lower() in _YES
        elif key in users:
            users[key] = [*users[key], *value.split()] if value.strip() else []
    only, spared = users.values()
    return does_kill and user not in spared and (not only or user in only)


def _gpu_rows(rows: Iterable[Sequence[str]]) -> Iterator[list[str]]:
    for row in csv.reader(("\t".join(each) for each in rows), skipinitialspace=True):
        if len(row) == 6 and row[0].isdigit():
            yield row


def _gpus(rows: Iterable[Sequence[str]]) -> Iterator[Device]:
    for index, uuid, name, total, used, _ in _gpu_rows(rows):
        yield Device(uuid, f"{index}: {name}", _number(total) or 0, _number(used) or 0)


def _gpu_users(rows: Iterable[Sequence[str]]) -> Iterator[GpuUser]:
    for uuid, pid, used, user, mark, name in (row for row in rows if len(row) == 6):
        if pid.isdigit():
            yield GpuUser(uuid, int(pid), user or "?", name.strip(), _number(used) or 0, mark)


def _listeners(rows: Iterable[Sequence[str]]) -> Iterator[Listener]:
    for port, raw, user, *rest in (row for row in rows if len(row) >= 3):
        address = _address(raw)
        if address is None or not port.isdigit():
            continue
        if len(rest) == 3 and rest[0].isdigit():
            pid, mark, name = rest
            yield Listener(int(port), address, user, int(pid), name.strip(), mark)
        else:
            yield Listener(int(port), address, user)


def _address(raw: str) -> str | None:
    """An address of /proc/net/tcp: 32-bit words in hex, each in the machine's byte order."""
    try:
        words = [bytes.fromhex(raw[at : at + 8])[::-1] for at in range(0, len(raw), 8)]
        address = ipaddress.ip_address(b"".join(words))
    except ValueError:
        return None
    mapped = address.ipv4_mapped if isinstance(address, ipaddress.IPv6Address) else None
    return str(mapped or address)


def _claim(text: str) -> Claim | None:
    if not text:
        return None
    try:
        data = json.loads(text)
        return Claim(str(data["cluster"]), str(data.get("id", "")))
    except (ValueError, KeyError, TypeError, AttributeError):
        return Claim("?")


def _model_paths(rows: Iterable[Sequence[str]]) -> Iterator[tuple[str, ModelFact]]:
    for path, is_directory, has_config, size in (row for row in rows if len(row) == 4):
        yield path, ModelFact(bool(is_directory), bool(has_config), _number(size) or 0)


def _processes(rows: Iterable[Sequence[str]]) -> Iterator[ShimFact]:
    for name, pid, mark, phase, detail in (row for row in rows if len(row) == 5):
        if pid.isdigit():
            yield ShimFact(name, int(pid), mark, phase, detail)


def _llx_processes(rows: Iterable[Sequence[str]]) -> Iterator[LlxProcess]:
    for pid, user, mark, command in (row for row in rows if len(row) == 4):
        if pid.isdigit():
            found = _CLUSTER.search(command)
            yield LlxProcess(int(pid), user, found[1] if found else "", command.strip(), mark)
