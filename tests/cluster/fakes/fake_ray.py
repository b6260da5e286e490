"""Stands in for `llx.cluster.ray.launch` and `llx.cluster.ray.talks`: processes that sleep.

fake_ray.py -m llx.cluster.ray.launch SPEC          files beside SPEC, in fake/:
fake_ray.py -m llx.cluster.ray.talks VERB SPEC     launches, asked: one line each
                                                    fail: how many launches are to fail yet
                                                    words: as long as it is there all fail, and
                                                    say this of it
                                                    answer: the driver's exit code
"""

import subprocess
import sys
from pathlib import Path

from llx.agent.shim import start_time
from llx.cluster.ray.launch import RayNode, RayProcess
from llx.cluster.ray.paths import RayPaths
from llx.specs import HostSpec, load_spec, save_spec


def main(argv: list[str]) -> int:
    spec_path = Path(argv[-1])
    fake = spec_path.parent / "fake"
    fake.mkdir(exist_ok=True)
    if argv[1].endswith("ray.talks"):
        with (fake / "asked").open("a") as file:
            file.write(f"{argv[2]}\n")
        return number(fake / "answer")
    with (fake / "launches").open("a") as file:
        file.write("launch\n")
    failures, spec = number(fake / "fail"), load_spec(spec_path, HostSpec)
    words = fake / "words"
    if words.exists():
        RayPaths(spec).failure.write_text(words.read_text())
        return 1
    if failures:
        (fake / "fail").write_text(str(failures - 1))
        return 1
    launch(spec)
    return 0


def launch(spec: HostSpec) -> None:
    names = ["gcs_server", "raylet"] if spec.is_head else ["raylet"]
    processes = []
    for name in names:
        child = subprocess.Popen(["sleep", "1000"], start_new_session=True)
        processes.append(RayProcess(name, child.pid, start_time(child.pid) or 0))
    paths = RayPaths(spec)
    paths.session_logs.mkdir(parents=True)
    (paths.session_logs / "raylet.out").write_text("words")
    save_spec(paths.node, RayNode("n0de", processes))


def number(path: Path) -> int:
    return int(path.read_text()) if path.exists() else 0


if __name__ == "__main__":
    sys.exit(main(sys.argv[1:]))
