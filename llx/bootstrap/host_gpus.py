"""Whether hosts have the GPUs that the cluster needs, and who else uses them. Pure."""

from collections.abc import Iterator, Mapping

from llx.bootstrap.host_facts import HostFacts
from llx.bootstrap.host_finding import CLUSTER, HostFinding
from llx.settings import ClusterSettings, ModelSettings, Platform
from llx.specs import EngineKind

_MIN_DRIVER = 580
"""Of the CUDA 13 that the pinned vLLM is built with."""


def find_of_host(settings: ClusterSettings, facts: HostFacts) -> Iterator[HostFinding]:
    """A host of platform cuda without a GPU or with an old driver; GPUs that others use."""
    if not _models_on_gpus(settings):
        return
    if not facts.gpus:
        if facts.has_nvidia_driver:
            problem = "there is an NVIDIA driver, but nvidia-smi shows no GPU"
            remedy = "mend the driver (run nvidia-smi there)"
        else:
            problem = "no NVIDIA driver and no GPU, but the cluster is of platform cuda"
            remedy = "install the driver there"
        if settings.runtime.platform is Platform.AUTO:
            remedy += ", set runtime.platform to cpu, or leave this host out"
        yield HostFinding(facts.host, "gpu", problem, remedy)
        return
    major = facts.driver_version.partition(".")[0]
    if facts.wanted_python is None and major.isdigit() and int(major) < _MIN_DRIVER:
        yield HostFinding(
            facts.host,
            "gpu",
            f"NVIDIA driver {facts.driver_version}; the CUDA of this vLLM needs {_MIN_DRIVER}",
            f"install driver {_MIN_DRIVER} or newer there, or set hosts[].python to a vLLM "
            "built for the driver that is there",
        )
    for label, why in _gpus_in_use(facts).items():
        yield HostFinding(
            facts.host,
            "gpu",
            f"GPU {label} is in use: {why}",
            "it is left alone; stop that process if the cluster is to have it",
            is_fatal=False,
        )


def find_of_cluster(
    settings: ClusterSettings, facts: Mapping[str, HostFacts]
) -> Iterator[HostFinding]:
    """Whether the instances find room: the largest first, each where most GPUs are free."""
    free = {name: len(each.gpus) - len(_gpus_in_use(each)) for name, each in facts.items()}
    models = _models_on_gpus(settings)
    wanted = sum(each.instances.min * each.tensor_parallel for each in models)
    left = dict(free)
    if not left or not any(each.gpus for each in facts.values()):
        return
    for model in sorted(models, key=lambda each: -each.tensor_parallel):
        for _ in range(model.instances.min):
            host = max(left, key=lambda name: left[name])
            if left[host] >= model.tensor_parallel:
                left[host] -= model.tensor_parallel
                continue
            shown = ", ".join(f"{count} on {name}" for name, count in free.items())
            tensor = f" ({model.tensor_parallel} on one host each)"
            yield HostFinding(
                CLUSTER,
                "gpu",
                f"{wanted} GPUs are asked for (instances × tensor_parallel), free are {shown}; "
                f"no room for every {model.name}" + (tensor if model.tensor_parallel > 1 else ""),
                "ask for fewer instances or a smaller tensor_parallel, or add hosts",
            )
            return


def _gpus_in_use(facts: HostFacts) -> dict[str, str]:
    """By whom, for each GPU that somebody else uses.

    Our own are known by our records: in a container nvidia-smi names no processes.
    """
    found = {}
    for device in facts.gpus:
        if device.id in facts.held_gpus:
            continue
        users = [each for each in facts.gpu_users if each.gpu == device.id]
        theirs = [each for each in users if each.mark not in facts.marks]
        if device.is_busy and (theirs or not users):
            used = f"{device.used_mib / 1024:.1f} of {device.memory_mib / 1024:.1f} GiB"
            names = [f"{each.name} (pid {each.pid}, user {each.user})" for each in theirs]
            found[device.label] = f"{used}, by {', '.join(names) or 'nobody that can be seen'}"
    return found


def _models_on_gpus(settings: ClusterSettings) -> list[ModelSettings]:
    return [each for each in settings.models if each.engine is EngineKind.VLLM]
