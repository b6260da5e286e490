"""Ray on one host of a cluster: ``python -m llx.cluster.ray.node VERB SPEC``, SPEC a `HostSpec`.

    start           the keeper runs, with this specification; whatever else is so is made so
    check           exit code 0 if the keeper runs with it and Ray's node is up; else says why not
    run             the keeper itself, under its shim
    stop --grace S  nothing of the cluster runs on this host any more: Ray, instances, gateways
    gone            exit code 0 if so
    rest            nothing of Ray runs on this host any more; instances and gateways go on
    resting         exit code 0 if so

Only what carries our marks or lies in our directories is touched: never ``ray stop``, which ends
whatever Ray it finds, other people's too.
"""

import argparse
import contextlib
import hashlib
import shutil
import sys
from pathlib import Path

from llx import __version__
from llx.agent.names import RAY, status_path
from llx.agent.processes import (
    Process,
    ProcessState,
    attach,
    is_any_marked,
    list_processes,
    spawn,
)
from llx.cluster.ray.paths import RayPaths
from llx.environment import Environment
from llx.errors import CheckError, ConfigError, LlxError, NotFoundError
from llx.log import configure_logging
from llx.specs import HostSpec, Phase, ProcessStatus, load_spec

_KEEPER_GRACE_S = 10.0
_DEFAULT_GRACE_S = 10.0


def main(argv: list[str]) -> int:
    """Do as the verb says; returns the exit code, and says on standard error what is wrong."""
    arguments = _parse(argv)
    try:
        spec = load_spec(arguments.spec, HostSpec)
        return _carry_out(arguments, spec)
    except LlxError as error:
        detail = f"\n{error.detail}" if error.detail else ""
        sys.stderr.write(f"{error}{detail}\n")
        return int(error.exit_code)


def _carry_out(arguments: argparse.Namespace, spec: HostSpec) -> int:
    verb: str = arguments.verb
    match verb:
        case "start":
            start(spec, arguments.spec)
        case "check":
            check(spec, arguments.spec)
        case "stop":
            stop(spec, arguments.grace)
        case "gone":
            check_gone(spec)
        case "rest":
            rest(spec)
        case "resting":
            check_resting(spec)
        case _:
            from llx.cluster.ray import keeper  # it alone needs all of that

            configure_logging()
            return keeper.main(arguments.spec)
    return 0


def start(spec: HostSpec, spec_path: Path) -> None:
    """Have the keeper run with this specification; returns before Ray is up.

    Raises:
        RemoteError: It cannot be started; says why.
    """
    from llx.cluster.state_dir import write_private  # it takes a while to import

    paths = RayPaths(spec)
    for file in (paths.stopping, paths.stopped):
        file.unlink(missing_ok=True)
    keeper = attach(paths.keeper)
    if keeper is not None and keeper.is_alive():
        if _is_same(paths, spec_path):
            return
        keeper.stop(_KEEPER_GRACE_S)
    if paths.fingerprint.exists() and not _is_same(paths, spec_path):
        # What the control store kept names actors of what has ended, and would wait for them.
        shutil.rmtree(paths.storage, ignore_errors=True)
    for directory in (paths.keeper, paths.head, paths.agent):
        directory.mkdir(mode=0o700, parents=True, exist_ok=True)
    status_path(paths.procs, RAY).unlink(missing_ok=True)
    write_private(paths.fingerprint, _fingerprint(spec, spec_path))
    command = [spec.python, "-m", "llx.cluster.ray.node", "run", str(spec_path.absolute())]
    spawn(paths.keeper, command, Environment.current().variables, python=spec.python)


def check(spec: HostSpec, spec_path: Path) -> None:
    """Whether all is as `start` would have it, and Ray's node is up.

    Raises:
        CheckError: It is not; says what.
    """
    paths = RayPaths(spec)
    keeper = attach(paths.keeper)
    if keeper is None or not keeper.is_alive():
        raise CheckError(f"{spec.host}: Ray's keeper does not run", detail=_tail(keeper))
    if not _is_same(paths, spec_path):
        raise CheckError(f"{spec.host}: Ray runs with another specification")
    if spec.is_head and (paths.stopped.exists() or paths.stopping.exists()):
        raise CheckError(f"{spec.host}: the cluster was stopped")
    try:
        said = load_spec(status_path(paths.procs, RAY), ProcessStatus)
    except ConfigError:
        raise CheckError(f"{spec.host}: Ray's keeper has just been started") from None
    if said.phase is not Phase.READY:
        raise CheckError(f"{spec.host}: Ray: {said.phase}: {said.detail}")


def stop(spec: HostSpec, grace_s: float) -> None:
    """End everything of the cluster on this host; instances and gateways have `grace_s`."""
    from llx.cluster.launch import stop_everything  # it takes a while to import

    paths = RayPaths(spec)
    keeper = attach(paths.keeper)
    if keeper is not None:  # first: it would start again what is being ended
        keeper.stop(_KEEPER_GRACE_S)
    stop_everything(Path(spec.state_dir), grace_s)
    for process in list_processes(paths.procs):
        with contextlib.suppress(NotFoundError):
            process.stop(0)  # what a killed shim has left behind
    for directory in (paths.tmp, paths.storage):
        shutil.rmtree(directory, ignore_errors=True)
    running = (paths.fingerprint, paths.node, paths.alive, paths.heard)
    for file in (*running, paths.stopping, paths.stopped):
        file.unlink(missing_ok=True)


def rest(spec: HostSpec) -> None:
    """End Ray on this host, and with it a control plane; what serves goes on.

    Raises:
        RemoteError: Something of it cannot be killed.
    """
    paths = RayPaths(spec)
    keeper = attach(paths.keeper)
    if keeper is not None:
        keeper.stop(_KEEPER_GRACE_S)
    # What the control store kept names actors of what has ended, and would wait for them.
    shutil.rmtree(paths.storage, ignore_errors=True)
    paths.fingerprint.unlink(missing_ok=True)


def check_resting(spec: HostSpec) -> None:
    """Whether nothing of Ray runs on this host.

    Raises:
        CheckError: It does.
    """
    keeper = attach(RayPaths(spec).keeper)
    if keeper is not None and not _is_gone(keeper):
        raise CheckError(f"{spec.host}: Ray's keeper runs")


def check_gone(spec: HostSpec) -> None:
    """Whether nothing of the cluster is on this host.

    Raises:
        CheckError: Something is; says what.
    """
    paths = RayPaths(spec)
    running = [each.name for each in list_processes(paths.procs) if not _is_gone(each)]
    if running:
        raise CheckError(f"{spec.host}: still running: {', '.join(running)}")
    if paths.tmp.exists():
        raise CheckError(f"{spec.host}: {paths.tmp} is still there")


def _is_gone(process: Process) -> bool:
    try:
        record = process.status()
    except NotFoundError:
        return True
    match record.state:
        case ProcessState.RUNNING:
            return False
        case ProcessState.EXITED:
            return True
        case ProcessState.LOST:
            return not is_any_marked(record.mark)


def _is_same(paths: RayPaths, spec_path: Path) -> bool:
    try:
        return paths.fingerprint.read_text() == _fingerprint(paths.spec, spec_path)
    except OSError:
        return False


def _fingerprint(spec: HostSpec, spec_path: Path) -> str:
    """Of everything that a running Ray cannot be told to change, the release of llx included."""
    digest = hashlib.sha256(__version__.encode())
    tls = [f"{spec.tls_dir}/{name}" for name in ("ca.pem", "host.pem")] if spec.is_tls else []
    for path in (str(spec_path), spec.ray_token_path, *tls):
        content = Path(path).read_bytes() if Path(path).exists() else b""
        digest.update(hashlib.sha256(content).digest())
    return digest.hexdigest()


def _tail(keeper: Process | None) -> str:
    try:
        return keeper.status().stderr_tail if keeper is not None else ""
    except NotFoundError:
        return ""


def _parse(argv: list[str]) -> argparse.Namespace:
    parser = argparse.ArgumentParser(prog="llx.cluster.ray.node", description="Ray on one host.")
    verbs = parser.add_subparsers(dest="verb", required=True)
    for verb in ("start", "check", "run", "stop", "gone", "rest", "resting"):
        each = verbs.add_parser(verb)
        each.add_argument("spec", type=Path)
        if verb == "stop":
            each.add_argument("--grace", type=float, default=_DEFAULT_GRACE_S)
    return parser.parse_args(argv)


if __name__ == "__main__":
    sys.exit(main(sys.argv[1:]))
