"""What a command line says of a simulation, over what a scenario says."""

from collections.abc import Sequence
from dataclasses import dataclass, replace
from pathlib import Path
from typing import Any

from llx.errors import ConfigError
from llx.sim.overrides import given
from llx.sim.plan import Plan
from llx.sim.presets import POLICIES
from llx.sim.profile import Profile, load_profile
from llx.sim.scenario import Scenario, load_scenario
from llx.yaml_reader import read_yaml


@dataclass(frozen=True, slots=True)
class Flags:
    """What a command line says of a scenario; None: nothing."""

    mix: str | None = None
    trace: Path | None = None
    trace_format: str | None = None
    scale_rate: float | None = None
    outputs: str | None = None
    rates: tuple[float, ...] | None = None
    cv: float | None = None
    requests: int | None = None
    high: float | None = None
    headroom: int | None = None
    instances: int | None = None
    policies: tuple[str, ...] | None = None
    seeds: str | None = None
    profile: Path | None = None


def overridden(scenario: Scenario, flags: Flags) -> Scenario:
    """A scenario with what the command line says instead.

    Raises:
        ConfigError: A value is wrong, or about something that is not there.
    """
    values = scenario.model_dump(by_alias=True, exclude_unset=True)
    if flags.profile is not None:
        values |= _measured(load_profile(flags.profile), scenario)
    values |= given(
        {
            "workload": flags.mix and {"mix": flags.mix},
            "trace": _trace_by(scenario, flags),
            "rates": flags.rates,
            "cv": flags.cv,
            "requests": flags.requests,
            "classes": _classes_by(scenario, flags),
            "instances": flags.instances,
            "policies": flags.policies and _policies_by(scenario, flags.policies),
            "seeds": flags.seeds,
        }
    )
    if flags.mix is not None and flags.trace is not None:
        raise ConfigError("--workload and a trace cannot both be given")
    if flags.mix is not None:
        values.pop("trace", None)
    return read_yaml("the command line", Scenario, values=values)


def planned(path: Path | None, flags: Flags) -> Plan:
    """What is to be run, by a file, if there is one, and the command line.

    Args:
        path: A scenario (``.yaml``), else a trace.
        flags: Override what a scenario says.

    Raises:
        ConfigError: Either is wrong.
    """
    if path is None:
        return overridden(Scenario(), flags).plan()
    if path.suffix in (".yaml", ".yml"):
        return overridden(load_scenario(path), flags).plan()
    if flags.trace is not None:
        raise ConfigError(f"two traces: {path} and {flags.trace}")
    return overridden(Scenario(), replace(flags, trace=path)).plan()


def _measured(profile: Profile, scenario: Scenario) -> dict[str, Any]:
    """The engine and link of a profile in the place of the scenario's, and what it says of them."""
    link = scenario.link.model_dump(exclude_none=True) | profile.link.model_dump(exclude_none=True)
    return {
        "engine": profile.engine.model_dump(exclude_unset=True),
        "link": link,
        "step_time": profile.step_time.model_dump(),
    }


def _trace_by(scenario: Scenario, flags: Flags) -> dict[str, Any] | None:
    changes = given(
        {
            "format": flags.trace_format,
            "scale_rate": flags.scale_rate,
            "outputs": flags.outputs,
        }
    )
    if flags.trace is not None:
        return {"file": flags.trace, **changes}
    if changes and scenario.trace is None:
        raise ConfigError(
            "--trace-format, --scale-rate and --outputs are about a trace, and there is none"
        )
    return {**scenario.trace.model_dump(), **changes} if scenario.trace and changes else None


def _classes_by(scenario: Scenario, flags: Flags) -> dict[str, Any] | None:
    changes = given({"share": flags.high, "headroom": flags.headroom})
    if not changes:
        return None
    if "high" not in scenario.classes:
        raise ConfigError('--high and --headroom are about the class "high", and there is none')
    classes = {name: each.model_dump() for name, each in scenario.classes.items()}
    return {**classes, "high": classes["high"] | changes}


def _policies_by(scenario: Scenario, names: Sequence[str]) -> dict[str, Any]:
    """Policies of the scenario by their names there, others by llx's."""
    own = {name: each.model_dump(by_alias=True) for name, each in scenario.policies.items()}
    unknown = [name for name in names if name not in own and name not in POLICIES]
    if unknown:
        known = ", ".join(dict.fromkeys((*own, *POLICIES)))
        raise ConfigError(f"no policy {unknown[0]!r}: it is one of {known}")
    return {name: own.get(name, {}) for name in names}
