"""What `llx rollout` asks the head for: options and files made concrete, and checked as by `up`."""

import json
from collections.abc import Iterable
from pathlib import Path
from typing import TYPE_CHECKING

from llx.cli.session import Session

if TYPE_CHECKING:
    from pydantic import JsonValue

    from llx.api import RolloutRequest

_NO_ARGUMENTS = frozenset({"model", "engine", "tensor_parallel", "sim", "name"})


def make_request(
    session: Session, model: str, changes: list[str], weights: str | None, file: Path | None
) -> "RolloutRequest":
    """Of `--set`, `--model` and `--file`.

    Raises:
        ConfigError: One of them makes no sense, or vLLM has no such argument.
    """
    from llx.api import RolloutRequest
    from llx.errors import ConfigError

    parsed: dict[str, str] = {}
    for each in changes:
        key, sign, value = each.partition("=")
        if not sign or not key:
            raise ConfigError(f'"{each}" is not KEY=VALUE')
        parsed[key] = value
    _check(model, _arguments(parsed))
    if weights is not None:
        parsed["model"] = json.dumps(_source(session, model, weights))
    values = {} if file is None else _values(session, model, file)
    return RolloutRequest(values=values, changes=parsed, user=session.user)


def _arguments(changes: Iterable[str]) -> list[str]:
    """The names of engine arguments among the keys."""
    found = []
    for key in changes:
        first, _, rest = key.strip().partition(".")
        if first == "engine_args":
            first = rest.partition(".")[0]
        elif first in _NO_ARGUMENTS or first in ("instances", "scheduling", "serve_args"):
            continue
        if first:
            found.append(first)
    return found


def _check(model: str, arguments: Iterable[str]) -> None:
    """As `llx up` does before anything is changed: a start that fails costs minutes."""
    from llx.bootstrap.facts import load_vllm_arguments
    from llx.bootstrap.preflight import find_arguments
    from llx.errors import ConfigError
    from llx.settings import ModelSettings

    named = {"name": model, "model": "/", "engine_args": dict.fromkeys(arguments)}
    for finding in find_arguments(ModelSettings.model_validate(named), load_vllm_arguments()):
        raise ConfigError(finding.problem, remedy=finding.remedy)


def _source(session: Session, model: str, weights: str) -> str:
    """`weights` as the head's hosts know it; a directory that is here needs no ``./``."""
    from llx.bootstrap.hosts_plan import model_on_hosts
    from llx.cluster_file import is_model_path
    from llx.errors import ConfigError
    from llx.settings import ModelSettings

    path = (session.environment.cwd / Path(weights).expanduser()).absolute()
    is_here = (path / "config.json").is_file()
    if session.cluster().hosts:
        if is_model_path(weights) and not is_here:
            return weights  # a directory of the hosts
        given = ModelSettings(name=model, model=str(path) if is_here else weights)
        return model_on_hosts(given)
    if is_model_path(weights) and not is_here:
        raise ConfigError(f"{path}: no directory with a model's config.json")
    return str(path) if is_here else weights


def _values(session: Session, model: str, file: Path) -> "dict[str, JsonValue]":
    from llx.bootstrap.hosts_plan import model_on_hosts
    from llx.errors import ConfigError
    from llx.settings import load_cluster, resolve_model, to_dict

    settings = load_cluster(file)
    for each in settings.models:
        if each.name != model:
            continue
        _check(model, each.engine_args)
        if not settings.hosts:
            return to_dict(resolve_model(each, session.environment))
        path = each.model_path
        is_theirs = path is not None and not (path / "config.json").is_file()
        source = each.model if is_theirs else model_on_hosts(each)
        return to_dict(each.model_copy(update={"model": source}))
    known = ", ".join(each.name for each in settings.models)
    raise ConfigError(f'{file}: no model "{model}"', remedy=f"there are: {known}")
