#!/usr/bin/env python3
"""Says what of the vLLM that llx leans on is another in another release, without running either.

    .ci/vllm_moves.py OLD.whl NEW.whl

Read is the source in two wheels (`pip download --no-deps vllm==…`): what llx imports from vLLM,
and of the classes among that, and their parents, every method and field that llx names anywhere in
its adapters. Exit code 1 if something moved. Nothing found is no proof: what a method does may have
changed behind the same signature. That is what the contract tests are for.
"""

import ast
import re
import sys
import zipfile
from collections.abc import Iterator
from dataclasses import dataclass
from functools import cache
from pathlib import Path

ROOT = Path(__file__).resolve().parents[1]
ADAPTERS = ("llx/agent/vllm", "llx/gateway")
REACHED = {
    ("vllm.config", "SchedulerConfig"),
    ("vllm.config", "VllmConfig"),
    ("vllm.v1.core.block_pool", "BlockPool"),
    ("vllm.v1.core.kv_cache_manager", "KVCacheManager"),
    ("vllm.v1.core.kv_cache_utils", "KVCacheBlock"),
    ("vllm.v1.core.sched.output", "SchedulerOutput"),
    ("vllm.v1.core.single_type_kv_cache_manager", "SingleTypeKVCacheManager"),
    ("vllm.v1.engine.async_llm", "AsyncLLM"),
    ("vllm.v1.kv_cache_interface", "KVCacheConfig"),
    ("vllm.v1.structured_output", "StructuredOutputManager"),
    ("vllm.v1.structured_output.request", "StructuredOutputRequest"),
    ("vllm.v1.worker.gpu_input_batch", "InputBatch"),
    ("vllm.v1.worker.gpu_model_runner", "GPUModelRunner"),
    ("vllm.v1.worker.worker_base", "WorkerBase"),
}
"""What llx gets hold of without importing it."""


def main(argv: list[str]) -> int:
    if len(argv) != 2:
        print(__doc__.split("\n\n")[1].strip(), file=sys.stderr)
        return 2
    old, new = Release(Path(argv[0])), Release(Path(argv[1]))
    sources = [path.read_text() for top in ADAPTERS for path in sorted((ROOT / top).rglob("*.py"))]
    named = set(re.findall(r"\w+", "\n".join(sources)))
    wanted = imported(sources) | REACHED
    if unknown := sorted(
        f"{module}.{name}" for module, name in REACHED if not old.find(module, name)
    ):
        print(f"{old.name} has no {', '.join(unknown)}", file=sys.stderr)
        return 2
    found = sorted({said for each in wanted for said in moves(*each, old, new, named)})
    for each in found:
        print(each)
    said = f"{len(found)} things moved from {old.name} to {new.name}; {len(wanted)} names looked at"
    print(said, file=sys.stderr)
    return 1 if found else 0


def imported(sources: list[str]) -> set[tuple[str, str]]:
    """(module, name) of each ``from vllm.module import name``."""
    nodes = [node for source in sources for node in ast.walk(ast.parse(source))]
    return {
        (node.module, alias.name)
        for node in nodes
        if isinstance(node, ast.ImportFrom) and node.module and node.module.startswith("vllm")
        for alias in node.names
    }


@cache
def module_in(wheel: Path, dotted: str) -> ast.Module | None:
    """The source of a module, if the wheel has it."""
    base = dotted.replace(".", "/")
    with zipfile.ZipFile(wheel) as archive:
        there = {f"{base}.py", f"{base}/__init__.py"} & set(archive.namelist())
        return ast.parse(archive.read(there.pop())) if there else None


@dataclass(frozen=True)
class Release:
    """The Python source in one wheel."""

    wheel: Path

    @property
    def name(self) -> str:
        return "-".join(self.wheel.name.split("-")[:2])

    def find(self, module: str, name: str) -> tuple[str, ast.stmt] | None:
        """Where what `module` calls `name` is defined, and its definition."""
        tree = module_in(self.wheel, module)
        for node in tree.body if tree else ():
            if name in bound(node):
                if isinstance(node, ast.ImportFrom) and node.level == 0 and node.module:
                    return self.find(node.module, name) or (module, node)
                return module, node
        return (
            (f"{module}.{name}", ast.Pass()) if module_in(self.wheel, f"{module}.{name}") else None
        )

    def elsewhere(self, name: str) -> list[str]:
        """Modules that define something of that name, wherever."""
        says = re.compile(rf"^(?:async )?(?:def|class) {re.escape(name)}\b", re.MULTILINE)
        with zipfile.ZipFile(self.wheel) as archive:
            paths = [path for path in archive.namelist() if path.endswith(".py")]
            return [
                path.removesuffix(".py").removesuffix("/__init__").replace("/", ".")
                for path in paths
                if says.search(archive.read(path).decode(errors="replace"))
            ]

    def members(self, module: str, node: ast.ClassDef) -> dict[str, str]:
        """Name → signature or type of a class's methods and fields, its parents' too."""
        found: dict[str, str] = {}
        for base in reversed(node.bases):
            parent = self.find(module, ast.unparse(base).partition("[")[0])
            if parent and isinstance(parent[1], ast.ClassDef):
                found |= self.members(parent[0], parent[1])
        for each in node.body:
            if isinstance(each, ast.FunctionDef | ast.AsyncFunctionDef):
                found[each.name] = signature(each)
                if each.name == "__init__":
                    found |= dict.fromkeys(assigned(each), "attribute")
            elif isinstance(each, ast.AnnAssign) and isinstance(each.target, ast.Name):
                found[each.target.id] = f": {ast.unparse(each.annotation)}"
        return found


def moves(module: str, name: str, old: Release, new: Release, named: set[str]) -> Iterator[str]:
    """A line for each thing about this import that is not as it was."""
    before, after = old.find(module, name), new.find(module, name)
    if before is None:
        return  # not vLLM's own, or not to be told from its source
    if after is None:
        places = ", ".join(new.elsewhere(name)) or "nowhere"
        yield f"{module}.{name}: gone; something of that name is in: {places}"
        return
    if isinstance(before[1], ast.ClassDef) and isinstance(after[1], ast.ClassDef):
        one, other = old.members(before[0], before[1]), new.members(after[0], after[1])
        if "Struct" in " ".join(map(ast.unparse, before[1].bases)):  # on the wire: by position
            was, is_now = fields(one), fields(other)
            if was != is_now:
                yield line(f"{module}.{name}", ", ".join(was), ", ".join(is_now))
        # What llx neither makes nor subclasses may be made as it likes.
        ours = named - {"__init__"} if (module, name) in REACHED else named
        for key in sorted(ours & one.keys()):
            if one[key] != other.get(key):
                yield line(f"{module}.{name}.{key}", one[key], other.get(key, "gone"))
        return
    if type(before[1]) is not type(after[1]):
        yield line(f"{module}.{name}", type(before[1]).__name__, type(after[1]).__name__)
        return
    functions = [each for _, each in (before, after) if is_function(each)]
    was_and_is = [signature(each) for each in functions]
    if len(set(was_and_is)) == 2:
        yield line(f"{module}.{name}", *was_and_is)


def line(what: str, was: str, is_now: str) -> str:
    return f"{what}\n    was {was}\n    is  {is_now}"


def fields(members: dict[str, str]) -> list[str]:
    return [key for key, what in members.items() if what.startswith(":")]


def bound(node: ast.stmt) -> set[str]:
    """The names that a statement of a module binds, those in an ``if`` or ``try`` too."""
    match node:
        case ast.FunctionDef() | ast.AsyncFunctionDef() | ast.ClassDef():
            return {node.name}
        case ast.Import() | ast.ImportFrom():
            return {alias.asname or alias.name for alias in node.names}
        case ast.Assign() | ast.AnnAssign():
            return names_in(node)
        case ast.If() | ast.Try():
            return {name for each in node.body for name in bound(each)}
        case _:
            return set()


def names_in(node: ast.stmt) -> set[str]:
    return {
        each.id
        for each in ast.walk(node)
        if isinstance(each, ast.Name) and isinstance(each.ctx, ast.Store)
    }


def assigned(function: ast.FunctionDef | ast.AsyncFunctionDef) -> set[str]:
    """The attributes that a method gives to ``self``."""
    return {
        each.attr
        for each in ast.walk(function)
        if isinstance(each, ast.Attribute)
        and isinstance(each.ctx, ast.Store)
        and ast.unparse(each.value) == "self"
    }


def is_function(node: ast.stmt) -> bool:
    return isinstance(node, ast.FunctionDef | ast.AsyncFunctionDef)


def signature(node: ast.stmt) -> str:
    assert isinstance(node, ast.FunctionDef | ast.AsyncFunctionDef)
    returns = f" -> {ast.unparse(node.returns)}" if node.returns else ""
    return f"({ast.unparse(node.args)}){returns}"


if __name__ == "__main__":
    sys.exit(main(sys.argv[1:]))
