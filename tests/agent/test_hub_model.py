"""Fetching from the hub: which files; and, with the real library against a small hub, the rest."""

import json
import os
import subprocess
import time
from collections.abc import Iterator
from dataclasses import dataclass
from pathlib import Path

import pytest

from llx.agent.hub_model import RemoteFile, wanted
from tests.agent.fake_hub import COMMIT, FakeHub
from tests.node import ROOT

SMALL = RemoteFile(1, "")


@pytest.mark.parametrize(
    ("names", "kept"),
    [
        (
            ["config.json", "model.safetensors", "pytorch_model.bin", "original/consolidated.pth"],
            ["config.json", "model.safetensors"],
        ),
        (["config.json", "pytorch_model.bin"], ["config.json", "pytorch_model.bin"]),
        (["onnx/a.safetensors", "m.bin"], ["onnx/a.safetensors", "m.bin"]),
        (["a.safetensors", ".gitattributes", "1_Pooling/config.json", "t.model"],
         ["a.safetensors", "1_Pooling/config.json", "t.model"]),
    ],
)  # fmt: skip
def test_weights_are_wanted_in_one_format(names, kept):
    assert list(wanted(dict.fromkeys(names, SMALL))) == kept


@dataclass
class Pull:
    """`llx.agent.hub_model` as a host runs it."""

    python: str
    url: str
    root: Path

    @property
    def place(self) -> Path:
        return self.root / "models" / "org--name"

    @property
    def argv(self) -> list[str]:
        return [self.python, "-m", "llx.agent.hub_model", "org/name"]

    @property
    def environment(self) -> dict[str, str]:
        return {
            "PATH": os.environ["PATH"],
            "PYTHONPATH": str(ROOT),
            "HOME": str(self.root),
            "HF_ENDPOINT": self.url,
            "HF_HOME": str(self.root / "hub"),
            "HF_HUB_DISABLE_TELEMETRY": "1",
            "HF_HUB_DISABLE_PROGRESS_BARS": "1",
        }

    def __call__(self, *options: str, token: str = "") -> tuple[int, list[dict]]:
        """Its exit code, and what it said but for progress."""
        task = [] if "--look-up" in options else ["--to", str(self.place)]
        done = subprocess.run(
            [*self.argv, *task, *options],
            input=token,
            env=self.environment,
            capture_output=True,
            text=True,
            timeout=120,
        )
        said = [json.loads(line) for line in done.stdout.splitlines()]
        for each in said:
            if each["llx"] == "progress":
                assert 0 <= each["done"] <= each["total"]
        return done.returncode, [each for each in said if each["llx"] != "progress"]


@pytest.fixture
def hub() -> FakeHub:
    return FakeHub(
        "org/name",
        {
            "config.json": b"{}",
            "model.safetensors": b"w" * 3_000_000,
            "pytorch_model.bin": b"x" * 2000,
            "sub/t[1].txt": b"abc",
            ".gitattributes": b"*",
        },
    )


@pytest.fixture
def pull(hub: FakeHub, tmp_path: Path) -> Iterator[Pull]:
    prefix = os.environ.get("LLX_NODE_PREFIX")
    assert prefix, "tests of the node tier need LLX_NODE_PREFIX: run them with `make test`"
    with hub.running() as url:
        yield Pull(f"{prefix}/bin/python", url, tmp_path)


def there(place: Path) -> set[str]:
    return {path.relative_to(place).as_posix() for path in place.rglob("*") if path.is_file()}


FETCHED = {"config.json", "model.safetensors", "sub/t[1].txt", "llx-model.json"}
SOURCE = f"hub:org/name@{COMMIT}"


@pytest.mark.node
def test_a_model_is_fetched_once(hub, pull):
    assert pull() == (0, [{"llx": "fetched", "source": SOURCE}])
    assert there(pull.place) == FETCHED
    assert (pull.place / "model.safetensors").read_bytes() == hub.files["model.safetensors"]
    manifest = json.loads((pull.place / "llx-model.json").read_text())
    assert manifest["source"] == SOURCE
    assert manifest["files"]["config.json"]["size"] == 2
    assert not [path for _, path in hub.asked if path.endswith((".bin", ".gitattributes"))]
    hub.asked.clear()
    assert pull() == (0, [{"llx": "unchanged", "source": SOURCE}])
    assert [path for _, path in hub.asked] == ["/api/models/org/name"]


@pytest.mark.node
def test_what_is_missing_is_fetched_again_and_what_is_not_part_of_it_goes(hub, pull):
    pull()
    (pull.place / "config.json").unlink()
    (pull.place / "of-another-revision.safetensors").touch()
    hub.asked.clear()
    assert pull() == (0, [{"llx": "fetched", "source": SOURCE}])
    assert there(pull.place) == FETCHED
    assert not [path for verb, path in hub.asked if verb == "GET" and "safetensors" in path]


@pytest.mark.node
def test_a_connection_that_breaks_is_taken_up_again(hub, pull):
    hub.cut = {"model.safetensors"}
    assert pull() == (0, [{"llx": "fetched", "source": SOURCE}])
    assert (pull.place / "model.safetensors").read_bytes() == hub.files["model.safetensors"]


@pytest.mark.node
def test_a_pull_that_was_killed_goes_on_from_what_is_there(hub, pull):
    hub.held = {"model.safetensors"}
    argv = [*pull.argv, "--to", str(pull.place)]
    with subprocess.Popen(argv, env=pull.environment, stdin=subprocess.DEVNULL) as killed:
        try:
            deadline = time.monotonic() + 60
            while not [path for path in there(pull.place) if path.endswith(".incomplete")]:
                assert time.monotonic() < deadline
                time.sleep(0.05)
        finally:
            killed.kill()
    assert "llx-model.json" not in there(pull.place)
    hub.held = set()
    assert pull() == (0, [{"llx": "fetched", "source": SOURCE}])
    assert there(pull.place) == FETCHED
    assert (pull.place / "model.safetensors").read_bytes() == hub.files["model.safetensors"]


@pytest.mark.node
def test_a_revision_is_looked_up_without_fetching_anything(hub, pull):
    hub.revisions = {"v1"}
    found = (0, [{"llx": "found", "commit": COMMIT}])
    assert pull("--look-up", "--revision=v1") == found
    assert pull("--look-up") == found
    assert not pull.place.exists()
    assert pull("--look-up", "--revision=v2")[1][0]["problem"] == "org/name has no such revision"


@pytest.mark.node
def test_weights_of_another_hash_are_not_kept(hub, pull):
    hub.wrong_hash = {"model.safetensors"}
    code, [said] = pull()
    assert code == 1
    assert said["problem"] == "model.safetensors does not have the hash that the hub announced"
    assert "model.safetensors" not in there(pull.place)
    assert "llx-model.json" not in there(pull.place)


@pytest.mark.node
def test_a_token_opens_what_is_gated(hub, pull):
    hub.token = "hf_right"
    code, [said] = pull(token="hf_wrong")
    assert (code, said["llx"]) == (1, "failed")
    assert said["problem"] == "org/name is gated, and there is no token that may read it"
    assert "HF_TOKEN=" in said["remedy"]
    code, [said] = pull(token="hf_right\n")
    assert (code, said["llx"]) == (0, "fetched")
    assert "hf_right" not in "".join(
        path.read_text(errors="replace") for path in pull.root.rglob("*") if path.is_file()
    )


@pytest.mark.node
@pytest.mark.parametrize(
    ("name", "options", "problem"),
    [
        ("org/other", (), "org/name does not exist on the hub, or is private"),
        ("org/name", ("--revision", "v9"), "org/name has no such revision"),
    ],
)
def test_what_the_hub_does_not_have_is_said_so(hub, pull, name, options, problem):
    hub.name = name
    code, [said] = pull(*options)
    assert (code, said["problem"]) == (1, problem)


@pytest.mark.node
def test_a_hub_out_of_reach_is_said_so(pull):
    pull.url = "http://127.0.0.1:9"
    code, [said] = pull()
    assert (code, said["llx"]) == (1, "away")
    assert said["problem"].startswith("the hub is out of reach: ConnectError: ")
    assert pull("--look-up")[1][0]["llx"] == "away"


@pytest.mark.node
def test_a_hub_that_goes_away_in_between_is_said_so(hub, pull):
    hub.deaf = "/resolve/"
    code, [said] = pull()
    assert (code, said["llx"]) == (1, "away")


@pytest.mark.node
def test_too_little_space_is_said_before_anything_is_fetched(hub, pull):
    hub.files["model.safetensors"] = FileOfSize(1 << 60)
    code, [said] = pull()
    assert code == 1
    assert "GB more in" in said["problem"]
    assert not [path for _, path in hub.asked if "/resolve/" in path]


class FileOfSize(bytes):
    """A file that is announced with a size it does not have."""

    def __new__(cls, size: int) -> "FileOfSize":
        made = super().__new__(cls)
        made.size = size
        return made

    def __len__(self) -> int:
        return self.size
