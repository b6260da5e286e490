"""YAML files into pydantic models, with every mistake named: file, line, key, nearest right key.

Knows nothing of what the files mean.
"""

import difflib
from collections.abc import Collection, Iterable, Iterator, Mapping, Sequence
from pathlib import Path
from typing import Any, TypeVar, get_args

import yaml
from pydantic import BaseModel, ValidationError
from pydantic_core import ErrorDetails

from llx.errors import ConfigError, NotFoundError

M = TypeVar("M", bound=BaseModel)
_MAX_NAMED = 20
_FAST_LOADER = getattr(yaml, "CSafeLoader", yaml.SafeLoader)


def nearest(word: str, known: Iterable[str]) -> str:
    """``; did you mean "…"?`` for the known word closest to `word`, or an empty string."""
    return _hint(word.replace("-", "_"), known)


def no_such(kind: str, name: str, known: Collection[str]) -> NotFoundError:
    """There is nothing of that name: which is the nearest, and what there is, the first of many."""
    shown = ", ".join(list(known)[:_MAX_NAMED])
    more = f" and {len(known) - _MAX_NAMED} more" if len(known) > _MAX_NAMED else ""
    return NotFoundError(
        f'no {kind} "{name}"{_hint(name, known)}', remedy=f"there are: {shown or 'none'}{more}"
    )


def _hint(word: str, known: Iterable[str]) -> str:
    matches = difflib.get_close_matches(word, list(known), n=1, cutoff=0.6)
    return f'; did you mean "{matches[0]}"?' if matches else ""


def read_yaml(
    source: Path | str,
    model: type[M],
    *,
    base: Path | None = None,
    values: Mapping[str, Any] | None = None,
) -> M:
    """A YAML file, or `values` that came from `source`, as `model`.

    Args:
        source: The file; with `values`, the words that name where these came from.
        model: What the data must be.
        base: Given to validators as their context: the directory of relative paths.
        values: Take these instead of reading a file.

    Raises:
        ConfigError: Unreadable, not YAML, a key twice, or not what `model` wants.
    """
    root: yaml.Node | None = None
    data: object = values
    if values is None:
        root, data = _load(Path(source))
    if not isinstance(data, Mapping):
        raise ConfigError(f"{source}: expected keys and values at the top level")
    try:
        return model.model_validate(data, context=base)
    except ValidationError as error:
        problems = [_explain(each, model, root) for each in error.errors()]
    problems.sort(key=lambda problem: problem[0] or 0)
    if len(problems) == 1:
        line, text = problems[0]
        raise ConfigError(f"{source}:{line}: {text}" if line else f"{source}: {text}")
    lines = [f"  line {line}: {text}" if line else f"  {text}" for line, text in problems]
    raise ConfigError("\n".join([f"{source}: {len(problems)} mistakes", *lines]))


def _load(path: Path) -> tuple[yaml.Node | None, object]:
    """The node tree of a YAML file, which unlike plain data knows its lines; and the data."""
    try:
        text = path.read_text(encoding="utf-8")
        root = _compose(text)
        data = {} if root is None else yaml.SafeLoader("").construct_document(root)
    except OSError as error:
        raise ConfigError(f"{path}: cannot be read: {error.strerror}") from None
    except UnicodeDecodeError:
        raise ConfigError(f"{path}: not UTF-8 text") from None
    except yaml.MarkedYAMLError as error:
        mark = error.problem_mark
        at = f":{mark.line + 1}:{mark.column + 1}" if mark else ""
        raise ConfigError(f"{path}{at}: not valid YAML: {error.problem or error}") from None
    except (yaml.YAMLError, ValueError, RecursionError) as error:
        raise ConfigError(f"{path}: not valid YAML: {error}") from None
    for line, key in _repeated_keys(root):
        raise ConfigError(f'{path}:{line}: key "{key}" is given twice')
    return root, data


def _compose(text: str) -> yaml.Node | None:
    """By libyaml, if it is there: ten times as fast. What it refuses, PyYAML itself explains."""
    root: yaml.Node | None
    try:
        root = yaml.compose(text, Loader=_FAST_LOADER)
    except yaml.YAMLError:
        root = yaml.compose(text, Loader=yaml.SafeLoader)
    return root


def _repeated_keys(node: yaml.Node | None) -> Iterator[tuple[int, str]]:
    if isinstance(node, yaml.MappingNode):
        seen: set[str] = set()
        for key, value in node.value:
            if key.value in seen:
                yield key.start_mark.line + 1, key.value
            seen.add(key.value if isinstance(key.value, str) else "")
            yield from _repeated_keys(value)
    elif isinstance(node, yaml.SequenceNode):
        for each in node.value:
            yield from _repeated_keys(each)


def _explain(
    error: ErrorDetails, model: type[BaseModel], root: yaml.Node | None
) -> tuple[int | None, str]:
    """Line and sentence for one of pydantic's findings."""
    loc = error["loc"]
    where = _dotted(loc)
    line = _line(root, loc)
    match error["type"]:
        case "extra_forbidden":
            parent = _dotted(loc[:-1])
            inside = f" in {parent}" if parent else ""
            hint = nearest(str(loc[-1]), _known_keys(model, loc[:-1]))
            return line, f'unknown key "{loc[-1]}"{inside}{hint}'
        case "missing":
            return line, f'required key "{where}" is missing'
        case _:
            return line, f"{where}: {error['msg']}" if where else error["msg"]


def _dotted(loc: Sequence[int | str]) -> str:
    text = "".join(f"[{each}]" if isinstance(each, int) else f".{each}" for each in loc)
    return text.removeprefix(".")


def _known_keys(model: type[BaseModel], loc: Sequence[int | str]) -> list[str]:
    """The keys allowed at `loc`."""
    for step in loc:
        if isinstance(step, int):
            continue
        annotation: object = next(
            (f.annotation for n, f in model.model_fields.items() if step in (n, f.alias)), None
        )
        inner = next(_models_in(annotation), None)
        if inner is None:
            return []
        model = inner
    return [field.alias or name for name, field in model.model_fields.items()]


def _models_in(annotation: object) -> Iterator[type[BaseModel]]:
    if isinstance(annotation, type) and issubclass(annotation, BaseModel):
        yield annotation
    for each in get_args(annotation):
        yield from _models_in(each)


def _line(root: yaml.Node | None, loc: Sequence[int | str]) -> int | None:
    """Line of the deepest node that `loc` still reaches; a mapping's entry is its key's line."""
    if root is None:
        return None
    node, line = root, root.start_mark.line + 1
    for step in loc:
        if isinstance(node, yaml.MappingNode):
            pair = next(((k, v) for k, v in node.value if k.value == str(step)), None)
            if pair is None:
                break
            line, node = pair[0].start_mark.line + 1, pair[1]
        elif isinstance(node, yaml.SequenceNode) and isinstance(step, int):
            if step >= len(node.value):
                break
            node = node.value[step]
            line = node.start_mark.line + 1
        else:
            break
    return line
