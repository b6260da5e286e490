"""What a Python interpreter holds: is it a node environment this llx can use?

Reads versions from metadata only: nothing here imports vLLM or Ray, so asking takes a tenth of a
second. Standard library and ``llx.errors`` only.
"""

import json
import subprocess
from dataclasses import dataclass
from enum import StrEnum
from pathlib import Path

from llx import __version__
from llx.errors import InstallError
from llx.pins import RAY_VERSION, VLLM_DISTRIBUTIONS, VLLM_VERSION

MARKER_NAME = "llx-node.json"
"""Written last into an environment of ours; see ``node_env``."""

_MIN_PYTHON = (3, 11)
_PROBE_TIMEOUT_S = 60.0


class NodePlatform(StrEnum):
    """What a node environment computes on; names its lock."""

    CPU = "cpu"
    CUDA = "cuda"


@dataclass(frozen=True, slots=True)
class NodeEnv:
    """What was found at an interpreter. ``None`` for what is not installed.

    Attributes:
        prefix: The environment's directory.
        python: Its interpreter.
        platform: The platform of the vLLM found; this machine's when there is none.
        python_version: ``3.11.7``.
        llx_version: Version of llx installed there.
        vllm_version: Version of vLLM, whichever distribution carries it.
        ray_version: Version of Ray.
        managed: Made by `install`, so ours to change and to remove.
    """

    prefix: Path
    python: Path
    platform: NodePlatform
    python_version: str
    llx_version: str | None
    vllm_version: str | None
    ray_version: str | None
    managed: bool


def detect_platform(root: Path = Path("/")) -> NodePlatform:
    """Return CUDA where an NVIDIA driver is loaded, else CPU. ``root`` is for tests."""
    signs = ("proc/driver/nvidia/version", "dev/nvidiactl", "usr/lib/wsl/lib/libcuda.so.1")
    return NodePlatform.CUDA if any((root / s).exists() for s in signs) else NodePlatform.CPU


def inspect_python(python: Path) -> NodeEnv:
    """Ask an interpreter what it holds: one short run of it, a tenth of a second.

    Raises:
        InstallError: There is no working Python at that path.
    """
    python = python.absolute()  # not resolved: a venv's interpreter is a link
    distributions = ["llx", "ray", *VLLM_DISTRIBUTIONS.values()]
    try:
        found = subprocess.run(
            # -E: a PYTHONPATH that we ourselves run from says nothing of what is installed there.
            [str(python), "-E", "-c", _PROBE, *distributions],
            capture_output=True,
            text=True,
            timeout=_PROBE_TIMEOUT_S,
            cwd="/",  # so that no folder named like a package is taken for it
            check=True,
        )
        facts = json.loads(found.stdout)
    except (OSError, subprocess.SubprocessError, ValueError) as error:
        raise InstallError(
            f"no working Python at {python}: {_reason(error)}",
            remedy="run `llx node install`, or point runtime.python at a Python >= 3.11",
        ) from error
    versions: dict[str, str] = facts["versions"]
    prefix = Path(facts["prefix"])
    platform, vllm_version = _find_vllm(versions)
    return NodeEnv(
        prefix=prefix,
        python=python,
        platform=platform,
        python_version=facts["python_version"],
        llx_version=versions.get("llx"),
        vllm_version=vllm_version,
        ray_version=versions.get("ray"),
        managed=(prefix / MARKER_NAME).exists(),
    )


def verify(env: NodeEnv) -> None:
    """Check that `env` can run this llx's instances.

    Raises:
        InstallError: Names the first thing that is not as it must be, and how to mend it.
    """
    verify_packages(env)
    _require(env, "llx", env.llx_version, __version__, "llx")


def verify_packages(env: NodeEnv) -> None:
    """`verify`, leaving llx itself out."""
    verify_python(env)
    _require(env, "vllm", env.vllm_version, VLLM_VERSION, VLLM_DISTRIBUTIONS[env.platform])
    _require(env, "ray", env.ray_version, RAY_VERSION, "ray")


def verify_python(env: NodeEnv) -> None:
    """`verify` the interpreter alone."""
    if tuple(map(int, env.python_version.split(".")[:2])) < _MIN_PYTHON:
        raise InstallError(
            f"Python {env.python_version} at {env.python} is too old; llx needs 3.11 or newer",
            remedy="name a newer Python (runtime.python, or --python for `llx node install`)",
        )


# Must run on any Python 3, however old, to say which it is.
_PROBE = """
import json, sys
versions = {}
try:
    from importlib import metadata
    for name in sys.argv[1:]:
        try:
            versions[name] = metadata.version(name)
        except metadata.PackageNotFoundError:
            pass
except ImportError:
    pass
python_version = ".".join(map(str, sys.version_info[:3]))
print(json.dumps(dict(prefix=sys.prefix, python_version=python_version, versions=versions)))
"""


def _find_vllm(versions: dict[str, str]) -> tuple[NodePlatform, str | None]:
    for platform in NodePlatform:
        version = versions.get(VLLM_DISTRIBUTIONS[platform])
        if version is not None:
            # A build from source is called vllm on every platform, and says `0.32.0+cpu`.
            built_for_cpu = version.partition("+")[2].startswith("cpu")
            return NodePlatform.CPU if built_for_cpu else platform, version
    return detect_platform(), None


def _require(env: NodeEnv, what: str, found: str | None, wanted: str, distribution: str) -> None:
    if found is not None and found.partition("+")[0] == wanted:
        return
    where = env.prefix if env.managed else env.python
    had = f"no {what} at {where}" if found is None else f"{what} {found} found at {where}"
    source = f"{distribution}=={wanted}" if what != "llx" else f"llx {__version__}"
    raise InstallError(
        f"{had}; llx {__version__} works with exactly {wanted}",
        remedy=(
            f"run `llx node install --prefix {env.prefix}`"
            if env.managed
            else f"install {source} there, or unset runtime.python and let llx make its own"
        ),
    )


def _reason(error: Exception) -> str:
    match error:
        case OSError():
            return error.strerror or str(error)
        case subprocess.CalledProcessError():
            last = str(error.stderr).strip().splitlines()[-1:]
            return f"exit code {error.returncode}{': ' if last else ''}{''.join(last)}"
        case subprocess.TimeoutExpired():
            return f"no answer in {error.timeout:.0f} s"
        case _:
            return "it does not answer like one"
