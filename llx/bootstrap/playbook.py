"""Playbooks: YAML files of typed steps that a host is brought into shape with.

A playbook is data: parameters and steps, no loops, no conditions. Each step says how a thing is to
be; `compile_playbook` turns it into a check, a deed and a check afterwards (`llx.bootstrap.steps`),
so that playing it a second time changes nothing. ``{name}`` in a text stands for a parameter's
value and never splits a word; other braces are themselves.
"""

import re
from collections.abc import Collection, Iterator, Mapping
from dataclasses import dataclass
from pathlib import Path

from pydantic import BaseModel, ConfigDict, Field, ValidationError, ValidationInfo, field_validator
from pydantic_core import InitErrorDetails, PydanticCustomError

from llx.bootstrap import steps
from llx.bootstrap.steps import Place, Step
from llx.bootstrap.work import Work
from llx.errors import ConfigError, NotFoundError
from llx.secret import Secret
from llx.yaml_reader import nearest, read_yaml

Value = str | Secret
Values = Mapping[str, Value]

SUFFIX = ".yaml"

_PARAMETER = re.compile(r"\{([A-Za-z_][A-Za-z0-9_]*)\}")
_PARAMETER_NAME = re.compile(r"[a-z][a-z0-9_]*")
_IMPLIED = {"absent": ("root", "ray_tmp"), "nftables": ("uid",)}
"""Parameters that steps of a kind need without naming them."""


class _File(BaseModel):
    model_config = ConfigDict(frozen=True, extra="forbid")

    name: str = Field(min_length=1)
    description: str
    parameters: dict[str, str] = {}
    steps: tuple[Step, ...]

    @field_validator("parameters")
    @classmethod
    def _usable_names(cls, parameters: dict[str, str]) -> dict[str, str]:
        for name in parameters:
            if not _PARAMETER_NAME.fullmatch(name):
                raise PydanticCustomError("name", f'"{name}" cannot name a parameter: a-z, 0-9, _')
        return parameters

    @field_validator("steps")
    @classmethod
    def _sound_steps(cls, found: tuple[Step, ...], info: ValidationInfo) -> tuple[Step, ...]:
        if not found:
            raise PydanticCustomError("empty", "there is no step")
        known = info.data.get("parameters")
        problems = list(_problems(found, known)) if known is not None else []
        if problems:
            errors = [
                InitErrorDetails(type=PydanticCustomError("step", text), loc=(index,), input=None)
                for index, text in problems
            ]
            raise ValidationError.from_exception_data("steps", errors)
        return found


@dataclass(frozen=True, slots=True)
class Playbook:
    """A playbook as it was read. `source` is its file; `parameters` are names and descriptions."""

    name: str
    description: str
    parameters: Mapping[str, str]
    steps: tuple[Step, ...]
    source: Path


def load_playbook(name: str) -> Playbook:
    """One of those that come with llx.

    Raises:
        NotFoundError: There is none of that name.
        ConfigError: The installation of llx is damaged.
    """
    for root in _roots():
        path = root / f"{name}{SUFFIX}"
        if path.name == f"{name}{SUFFIX}" and path.is_file() and path.parent == root:
            return read_playbook(path)
    known = playbook_names()
    if not known:
        raise ConfigError("llx's own playbooks are missing", remedy="install llx again")
    raise NotFoundError(
        f'no playbook "{name}"{nearest(name, known)}',
        remedy=f"one of {', '.join(known)}; or a file: ./{name}{SUFFIX}",
    )


def playbook_names() -> list[str]:
    """Those that come with llx, sorted."""
    found = {path.stem for root in _roots() for path in root.glob(f"*{SUFFIX}")}
    return sorted(found)


def read_playbook(path: Path) -> Playbook:
    """A playbook from a file.

    Raises:
        ConfigError: Not readable, or not a playbook; each mistake is named with its line.
    """
    found = read_yaml(path, _File)
    return Playbook(found.name, found.description, found.parameters, found.steps, path)


def compile_playbook(playbook: Playbook, values: Values) -> tuple[Work, ...]:
    """The work of each step with its parameters filled in. `values` may hold more than it needs.

    Raises:
        ConfigError: A parameter has no value, a secret stands where it would be seen, or a step
            reaches beyond what it may touch. Names the playbook and the step.
    """
    require_values(playbook, values)
    return tuple(_compile(playbook, each, values) for each in playbook.steps)


def require_values(playbook: Playbook, names: Collection[str]) -> None:
    """See that each parameter is among `names`.

    Raises:
        ConfigError: One is not; says which step needs it, and what it means.
    """
    missing = [name for name in playbook.parameters if name not in names]
    if missing:
        name = missing[0]
        step = next((each.name for each in playbook.steps if name in _names(each)), "")
        raise ConfigError(
            f'playbook {playbook.name}, step "{step}": parameter "{name}" has no value '
            f"({playbook.parameters[name]})",
            remedy=f"llx play … --set {name}=VALUE",
        )


def _compile(playbook: Playbook, step: Step, values: Values) -> Work:
    def fill(text: str) -> str:
        filled = _filled(text, values)
        if isinstance(filled, Secret):
            raise ConfigError(f'"{text}" is a secret: it may only be the content of a file')
        return filled

    place = Place(playbook.source.parent, fill, lambda text: _filled(text, values))
    try:
        return steps.compile_step(step, place)
    except ConfigError as error:
        raise ConfigError(
            f'playbook {playbook.name}, step "{step.name}": {error.message}', remedy=error.remedy
        ) from None


def _filled(text: str, values: Values) -> Value:
    """`text` with values for parameters; a secret if one of them is."""
    is_secret = False

    def replaced(found: re.Match[str]) -> str:
        nonlocal is_secret
        value = values[found[1]]
        if isinstance(value, Secret):
            is_secret = True
            return value.reveal()
        return value

    filled = _PARAMETER.sub(replaced, text)
    return Secret(filled) if is_secret else filled


def _problems(found: tuple[Step, ...], known: Mapping[str, str]) -> Iterator[tuple[int, str]]:
    """What is wrong with the steps, taken together with the parameters."""
    seen: set[str] = set()
    used: set[str] = set()
    for index, step in enumerate(found):
        if step.name in seen:
            yield index, f'step "{step.name}" is there twice'
        seen.add(step.name)
        names = _names(step)
        used |= names
        for name in sorted(names - known.keys()):
            yield index, f'step "{step.name}": no parameter "{name}"{nearest(name, known)}'
    for name in known.keys() - used:
        yield len(found) - 1, f'parameter "{name}" is not used by any step'


def _names(step: Step) -> set[str]:
    """The parameters that a step needs."""
    found = {name for text in step.texts() for name in _PARAMETER.findall(text)}
    for kind, names in _IMPLIED.items():
        if getattr(step, kind) is not None:
            found |= set(names)
    return found


def _roots() -> list[Path]:
    """Where llx's own playbooks may lie: in a wheel, in the repository."""
    package = Path(__file__).parents[1]
    return [package / "_data" / "playbooks", package.parent / "playbooks"]
