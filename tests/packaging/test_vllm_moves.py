"""What moved between two releases of vLLM, told from their source alone."""

import runpy
import zipfile
from pathlib import Path

import pytest

ROOT = Path(__file__).parents[2]


@pytest.fixture(scope="module")
def script():
    return runpy.run_path(str(ROOT / ".ci" / "vllm_moves.py"))


@pytest.fixture
def moved(script, tmp_path):
    """What `vllm.thing.Engine` and others have moved to, from one source to another."""

    def moves(name, *sources, named="step fields"):
        releases = []
        for number, files in enumerate(sources):
            wheel = tmp_path / f"vllm-0.{number}-py3-none-any.whl"
            with zipfile.ZipFile(wheel, "w") as archive:
                for path, text in files.items():
                    archive.writestr(path, text)
            releases.append(script["Release"](wheel))
        script["module_in"].cache_clear()
        return list(script["moves"]("vllm.thing", name, *releases, set(named.split())))

    return moves


def engine(step="self, n: int", parent="", more=""):
    return {"vllm/thing.py": f"class Engine({parent}):\n    def step({step}): ...\n{more}"}


def test_the_same_is_the_same(moved):
    assert moved("Engine", engine(), engine(more="    def other(self): ...\n")) == []


def test_a_signature(moved):
    (said,) = moved("Engine", engine(), engine(step="self, n: int, m=0"))
    assert said.startswith("vllm.thing.Engine.step\n")
    assert said.endswith("is  (self, n: int, m=0)")


def test_a_method_of_a_parent_in_another_module(moved):
    was = engine(parent="Base", step="self") | {
        "vllm/base.py": "class Base:\n    def fields(self): ...\n"
    }
    was["vllm/thing.py"] = "from vllm.base import Base\n" + was["vllm/thing.py"]
    (said,) = moved("Engine", was, was | {"vllm/base.py": "class Base: ...\n"})
    assert said == "vllm.thing.Engine.fields\n    was (self)\n    is  gone"


def test_a_function(moved):
    def start(more):
        return {"vllm/thing.py": f"def start(args{more}): ..."}

    assert moved("start", start(""), start("")) == []
    (said,) = moved("start", start(""), start(", port"))
    assert said == "vllm.thing.start\n    was (args)\n    is  (args, port)"


def test_what_llx_does_not_name_does_not_matter(moved):
    assert moved("Engine", engine(), engine(step="self"), named="other") == []


def test_a_name_that_is_elsewhere_now(moved):
    (said,) = moved(
        "start", {"vllm/thing.py": "def start(): ..."}, {"vllm/new/a.py": "def start(): ..."}
    )
    assert said == "vllm.thing.start: gone; something of that name is in: vllm.new.a"


def test_a_field_more_on_the_wire(moved):
    struct = "import msgspec\nclass Outputs(msgspec.Struct):\n    a: int\n"
    (said,) = moved(
        "Outputs", {"vllm/thing.py": struct}, {"vllm/thing.py": struct + "    b: int = 0\n"}
    )
    assert said == "vllm.thing.Outputs\n    was a\n    is  a, b"


def test_what_it_asks_about_is_what_the_adapters_import(script):
    source = "from vllm.v1.request import Request\nfrom os import path\n"
    source += "def f():\n    from vllm import LLM\n"
    assert script["imported"]([source]) == {("vllm.v1.request", "Request"), ("vllm", "LLM")}
