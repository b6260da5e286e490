"""A profile: engine and link of a cluster as `llx calibrate` has measured them, in a file.

Its `engine` and `link` are a scenario's, its `step_time` is cluster.yaml's: what the simulator and
what the scheduler go by. The rest says how well they are known.
"""

from collections.abc import Mapping
from pathlib import Path
from typing import Literal

import yaml
from pydantic import Field

from llx.core.scheduler.config import StepTime as Prediction
from llx.scheduling_settings import StepTimeSettings
from llx.sim.link_fit import LinkFit
from llx.sim.live_fit import LiveFit
from llx.sim.overrides import Part
from llx.sim.scenario import EnginePart, LinkPart, StepPart
from llx.yaml_reader import read_yaml


class KnownPart(Part):
    """How well step times are known: errors of steps held out, and what the steps covered."""

    steps: int
    held_out: int
    error_p50: float
    error_p95: float
    prediction_error_p50: float
    stalls: int
    stall_time_share: float
    prompt_tokens: tuple[float, float]
    requests_at_a_time: tuple[float, float]
    context_tokens: tuple[float, float]
    prompts_beside_decodes: int


class LinkKnownPart(LinkPart):
    """A transport, and how well it is known."""

    moves: int
    error_p50: float
    bytes: tuple[int, int]


class Profile(Part):
    """What a model's instances and the way between them are like.

    Attributes:
        model: Which.
        engine: As a scenario has it.
        link: Of the transport that most moves took, and the gateway's part; nothing: not measured.
        step_time: As cluster.yaml's `scheduling.step_time`.
        fit: How well engine and step time are known.
        links: By transport.
    """

    api_version: Literal["v1"] = "v1"
    model: str
    engine: EnginePart
    link: LinkPart = LinkPart()
    step_time: StepTimeSettings
    fit: KnownPart
    links: dict[str, LinkKnownPart] = Field(default={})

    def text(self) -> str:
        """The file."""
        values = self.model_dump(mode="json", exclude_defaults=True)
        return yaml.safe_dump(values, sort_keys=False, default_flow_style=None)


def load_profile(path: Path) -> Profile:
    """A profile's file.

    Raises:
        ConfigError: It cannot be read, or is none; every mistake with its line.
    """
    return read_yaml(path, Profile)


def make_profile(
    model: str,
    sizes: Mapping[str, int],
    fit: LiveFit,
    links: list[LinkFit],
    gateway_s: float | None,
) -> Profile:
    """Of what was fitted; `sizes`: the engine's, by their names in a scenario."""
    known = {each.transport: _link(each) for each in links}
    link: dict[str, float | None] = (
        {} if gateway_s is None else {"gateway_ms": round(gateway_s * 1e3, 3)}
    )
    for first in list(known.values())[:1]:
        link |= {"gb_per_s": first.gb_per_s, "overhead_ms": first.overhead_ms}
    return Profile(
        model=model,
        engine=EnginePart(**sizes, prefill_first=False, watermark=0, step=_step(fit)),
        link=LinkPart(**link),
        step_time=_step_time(fit.prediction),
        fit=_known(fit),
        links=known,
    )


def _step(fit: LiveFit) -> StepPart:
    """Without the terms that are not needed."""
    return StepPart(**StepPart.of(fit.step_time).model_dump(exclude_defaults=True))


def _step_time(prediction: Prediction) -> StepTimeSettings:
    return StepTimeSettings(
        base_ms=prediction.base / 1e6,
        per_prefill_token_us=prediction.per_prefill_token / 1e3,
        per_request_us=prediction.per_request / 1e3,
        per_block_us=prediction.per_block / 1e3,
    )


def _known(fit: LiveFit) -> KnownPart:
    seen = fit.coverage
    return KnownPart(
        steps=fit.num_steps,
        held_out=fit.num_held_out,
        error_p50=round(fit.error, 4),
        error_p95=round(fit.error_p95, 4),
        prediction_error_p50=round(fit.prediction_error, 4),
        stalls=fit.num_stalls,
        stall_time_share=round(fit.stall_share, 4),
        prompt_tokens=(seen.prompts.least, seen.prompts.most),
        requests_at_a_time=(seen.batches.least, seen.batches.most),
        context_tokens=(round(seen.contexts.least), round(seen.contexts.most)),
        prompts_beside_decodes=seen.num_mixed,
    )


def _link(fit: LinkFit) -> LinkKnownPart:
    return LinkKnownPart(
        gb_per_s=round(fit.bytes_per_s / 1e9, 4),
        overhead_ms=round(fit.overhead_s * 1e3, 3),
        moves=fit.num_moves,
        error_p50=round(fit.error, 4),
        bytes=(fit.least_bytes, fit.most_bytes),
    )
