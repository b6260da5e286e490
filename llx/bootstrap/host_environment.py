"""Whether a host has, or can be given, the Python environment that its part of the cluster runs in.

Of this machine it looks at the wheelhouse. Where a Python comes from is decided by
`llx.bootstrap.host_python`.
"""

from collections.abc import Iterator
from pathlib import Path

from llx.bootstrap.host_facts import HostFacts, PythonFact
from llx.bootstrap.host_finding import CLUSTER, HostFinding
from llx.bootstrap.host_python import FetchedPython, plan_python
from llx.bootstrap.node_probe import NodeEnv, NodePlatform, verify
from llx.bootstrap.wheelhouse import PYTHONS
from llx.errors import ExitCode, HostError, InstallError
from llx.pins import VLLM_DISTRIBUTIONS
from llx.settings import ClusterSettings, Platform


def find_of_host(
    settings: ClusterSettings, facts: HostFacts, platform: Platform, only: str | None
) -> Iterator[HostFinding]:
    """Findings of one host; `only` is the release that all use (`host_python.common_version`)."""
    if facts.wanted_python is not None:
        wrong = list(_wanted_python(facts, facts.wanted_python, platform))
        yield from wrong
        if not wrong and facts.override is not None and only is not None:
            yield from _release(facts, facts.override, only)
        return
    if facts.has_node_environment(platform):
        yield from _installed(settings, facts, platform, only)
        return
    try:
        plan = plan_python(facts, NodePlatform(platform), _wheelhouse(settings), only=only)
    except HostError as error:
        problem = error.message.removeprefix(f"{error.host}: {error.step}: ")
        yield HostFinding(facts.host, "python", problem, error.remedy)
        return
    if isinstance(plan, FetchedPython):
        yield HostFinding(
            facts.host,
            "python",
            f"{_pythons_in_words(facts, plan.version)}; a standalone Python {plan.version} will be "
            "fetched from the internet, by the host",
            f"to prevent that, install Python {_sought(facts, plan.version)} there, with venv "
            "(apt-get install python3-venv), or set hosts[].python",
            is_fatal=False,
        )


def find_of_cluster(settings: ClusterSettings) -> Iterator[HostFinding]:
    """Whether the wheelhouse is there."""
    wheelhouse = settings.runtime.wheelhouse
    if wheelhouse is not None and _wheelhouse(settings) is None:
        problem = f"wheelhouse {wheelhouse}: no such directory here"
        remedy = f"llx node download {wheelhouse}, or leave runtime.wheelhouse out"
        yield HostFinding(CLUSTER, "python", problem, remedy, ExitCode.USAGE)


def _release(facts: HostFacts, given: PythonFact, only: str) -> Iterator[HostFinding]:
    if given.version_text.startswith(f"{only}."):
        return
    yield HostFinding(
        facts.host,
        "python",
        f"{given.path} is Python {given.version_text}, other hosts use {only}: Ray joins no two "
        "releases",
        f"set hosts[].python to an environment with Python {only}, or leave it out everywhere",
    )


def _installed(
    settings: ClusterSettings, facts: HostFacts, platform: Platform, only: str | None
) -> Iterator[HostFinding]:
    """Of another release than the others' it is not made anew unasked: it may be in use."""
    release = facts.installed_python(platform)
    if release is None or only is None or release == only:
        return
    place = facts.layout(settings.cluster).node(platform)
    down = "`llx down`, then " if facts.is_cluster_running else ""
    yield HostFinding(
        facts.host,
        "python",
        f"its node environment is of Python {release}, other hosts use {only}: Ray joins no two "
        "releases",
        f"{down}rm -r {place} there: `llx up` makes it anew, of Python {only}",
    )


def _pythons_in_words(facts: HostFacts, version: str) -> str:
    if not facts.pythons:
        return "there is no Python"
    had = [
        f"Python {each.version_text} ({each.path})" + ("" if each.has_venv else " without venv")
        for each in facts.pythons
    ]
    as_others = ", as on the other hosts" if _would_do_alone(facts) else ""
    needed = f"{_sought(facts, version)} with venv is needed{as_others}"
    return f"{', '.join(had)} will not do: {needed}"


def _sought(facts: HostFacts, version: str) -> str:
    """The Python that a host had better have, in words."""
    return version if _would_do_alone(facts) else "3.11 or newer"


def _would_do_alone(facts: HostFacts) -> bool:
    """Whether it has a Python that would do if it were not for the other hosts."""
    return any(each.has_venv and _short(each) in PYTHONS for each in facts.pythons)


def _short(python: PythonFact) -> str:
    return f"{python.version[0]}.{python.version[1]}"


def _wheelhouse(settings: ClusterSettings) -> Path | None:
    """If it is not there, one finding says so."""
    wheelhouse = settings.runtime.wheelhouse
    return wheelhouse if wheelhouse is not None and wheelhouse.is_dir() else None


def _wanted_python(facts: HostFacts, path: str, platform: Platform) -> Iterator[HostFinding]:
    found = facts.override
    if found is None:
        yield HostFinding(
            facts.host,
            "python",
            f"no working Python at {path}",
            "correct hosts[].python (or runtime.python), or leave it out: llx makes its own",
        )
        return
    vllm = {each: found.versions.get(VLLM_DISTRIBUTIONS[each]) for each in NodePlatform}
    had = next((each for each in NodePlatform if vllm[each] is not None), None)
    version = vllm[had] if had is not None else None
    if version is not None and version.partition("+")[2].startswith("cpu"):
        had = NodePlatform.CPU
    environment = NodeEnv(
        prefix=Path(found.prefix),
        python=Path(path),
        platform=had or NodePlatform(platform),
        python_version=found.version_text,
        llx_version=found.versions.get("llx"),
        vllm_version=version,
        ray_version=found.versions.get("ray"),
        managed=False,
    )
    if found.version < (3, 11):
        yield HostFinding(
            facts.host,
            "python",
            f"Python {found.version_text} at {path} is too old; llx needs 3.11 or newer",
            "set hosts[].python (or runtime.python) to a newer one, or leave it out: llx makes its "
            "own",
        )
        return
    try:
        verify(environment)
    except InstallError as error:
        yield HostFinding(facts.host, "python", error.message, error.remedy)
        return
    if had != NodePlatform(platform):
        yield HostFinding(
            facts.host,
            "python",
            f"vLLM at {path} is built for {had}, the cluster is of platform {platform}",
            f"set runtime.platform to {had}, or name another Python",
        )
