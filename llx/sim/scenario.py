"""A scenario: what is simulated, as a file says it. `examples/sim/` explains every key.

Everything has a default, the paper's: an empty file is the paper's cluster under the policy of llx.
Flags of the command line go over it (`llx.sim.flags`), and one `Plan` comes of both.
"""

import re
from dataclasses import replace
from pathlib import Path
from typing import Annotated, Any, Final

from pydantic import BeforeValidator, Field
from pydantic_core import PydanticCustomError

from llx.core.engine_state import EngineConfig, StepTime
from llx.core.model import Blocks, ClassName, Nanos, blocks_for
from llx.core.scheduler.config import PriorityClass, Slo
from llx.core.scheduler.config import StepTime as Prediction
from llx.errors import ConfigError
from llx.scheduling_settings import StepTimeSettings
from llx.sim.config import ClusterConfig
from llx.sim.links import LinkConfig
from llx.sim.overrides import Part, PolicyRules, given
from llx.sim.plan import Goal, Plan, Variant
from llx.sim.presets import paper_cluster
from llx.sim.supply import Mix, Source, Trace
from llx.yaml_reader import read_yaml

_SEEDS = re.compile(r"(\d+)(?:-(\d+))?")
_ENDLESS: Final = 10**9


def parse_seeds(text: object) -> tuple[int, ...]:
    """``3``, ``0-4`` or a list of numbers.

    Raises:
        PydanticCustomError: None of those.
    """
    if isinstance(text, list | tuple) and all(isinstance(each, int) for each in text):
        return tuple(text)
    match = _SEEDS.fullmatch(str(text))
    if match is None or (match[2] and int(match[2]) < int(match[1])):
        raise PydanticCustomError("seeds", f'"{text}" names no seeds: write 3 or 0-4')
    return tuple(range(int(match[1]), int(match[2] or match[1]) + 1))


def parse_outputs(value: object) -> object:
    """A number of tokens, or ``s``, ``m``, ``l``.

    Raises:
        PydanticCustomError: Neither.
    """
    text = str(value)
    if value is None or text in ("s", "m", "l"):
        return value
    if not text.isdecimal() or int(text) < 1:
        raise PydanticCustomError("outputs", f'"{value}" is no length: write 200, s, m or l')
    return int(text)


Positive = Annotated[float, Field(gt=0)]
Size = Annotated[int, Field(ge=1)]
Share = Annotated[float, Field(ge=0, le=1)]
Name = Annotated[str, Field(pattern=r"^[A-Za-z0-9][A-Za-z0-9._-]*$")]
"""Of a policy or class; also part of file names."""


class StepPart(Part):
    """How long a step takes: as `llx.core.engine_state.StepTime`."""

    base_ms: float = Field(ge=0)
    prefill_token_us: float = Field(default=0, ge=0)
    decode_us: float = Field(default=0, ge=0)
    context_ktoken_us: float = Field(default=0, ge=0)
    prefill_base_ms: float | None = Field(default=None, ge=0)
    prefill_square_ns: float = Field(default=0, ge=0)
    weights_ms: float = Field(default=0, ge=0)
    token_us: float = Field(default=0, ge=0)
    mixed_decode_us: float = Field(default=0, ge=0)
    mixed_context_ktoken_us: float = Field(default=0, ge=0)

    @classmethod
    def of(cls, step_time: StepTime) -> "StepPart":
        """As a file says it."""
        base = step_time.prefill_base_ns
        return cls(
            base_ms=step_time.base_ns / 1e6,
            prefill_token_us=step_time.prefill_token_ns / 1e3,
            decode_us=step_time.decode_ns / 1e3,
            context_ktoken_us=step_time.context_ktoken_ns / 1e3,
            prefill_base_ms=None if base is None else base / 1e6,
            prefill_square_ns=step_time.prefill_square_ns,
            weights_ms=step_time.weights_ns / 1e6,
            token_us=step_time.token_ns / 1e3,
            mixed_decode_us=step_time.mixed_decode_ns / 1e3,
            mixed_context_ktoken_us=step_time.mixed_context_ktoken_ns / 1e3,
        )

    def value(self) -> StepTime:
        """In the engine model's units."""
        base = self.prefill_base_ms
        return StepTime(
            base_ns=round(self.base_ms * 1e6),
            prefill_token_ns=round(self.prefill_token_us * 1e3),
            decode_ns=round(self.decode_us * 1e3),
            context_ktoken_ns=round(self.context_ktoken_us * 1e3),
            prefill_base_ns=None if base is None else round(base * 1e6),
            prefill_square_ns=round(self.prefill_square_ns),
            weights_ns=round(self.weights_ms * 1e6),
            token_ns=round(self.token_us * 1e3),
            mixed_decode_ns=round(self.mixed_decode_us * 1e3),
            mixed_context_ktoken_ns=round(self.mixed_context_ktoken_us * 1e3),
        )


class EnginePart(Part):
    """An instance's engine: what is given differs from the paper's."""

    num_blocks: Size | None = None
    block_size: Size | None = None
    block_bytes: Size | None = None
    max_num_seqs: Size | None = None
    max_num_batched_tokens: Size | None = None
    max_model_len: Size | None = None
    prefill_first: bool | None = None
    watermark: int | None = Field(default=None, ge=0)
    step: StepPart | None = None

    def value(self, base: EngineConfig) -> EngineConfig:
        """The engine.

        Raises:
            ConfigError: Its sizes contradict each other.
        """
        changes: dict[str, Any] = self.model_dump(
            exclude_none=True, exclude={"block_bytes", "prefill_first", "step"}
        )
        if self.prefill_first is not None:
            changes["is_prefill_first"] = self.prefill_first
        if self.step is not None:
            changes["step_time"] = self.step.value()
        blocks, size, longest, budget, is_whole = (
            changes.get(name, getattr(base, name))
            for name in (
                "num_blocks",
                "block_size",
                "max_model_len",
                "max_num_batched_tokens",
                "is_prefill_first",
            )
        )
        if blocks_for(longest, size) > blocks:
            raise ConfigError(
                f"engine: {blocks} blocks of {size} hold no request of max_model_len {longest}"
            )
        if is_whole and budget < longest:
            raise ConfigError(
                "engine: where prefill_first is true, max_num_batched_tokens is at least "
                "max_model_len: prompts are computed whole"
            )
        return replace(base, **changes)


class LinkPart(Part):
    """Between any two instances; `gateway_ms`: between clients and instances."""

    gb_per_s: Positive | None = None
    overhead_ms: float | None = Field(default=None, ge=0)
    hop_ms: float | None = Field(default=None, gt=0)
    gateway_ms: float | None = Field(default=None, ge=0)

    def value(self, base: LinkConfig) -> LinkConfig:
        """The link."""
        values = {
            "bytes_per_s": self.gb_per_s and round(self.gb_per_s * 1e9),
            "overhead": _nanos(self.overhead_ms, 1e6),
            "hop": _nanos(self.hop_ms, 1e6),
            "gateway": _nanos(self.gateway_ms, 1e6),
        }
        return replace(base, **given(values))


class ClassPart(Part):
    """A priority class; `ttft_ms` and `tpot_ms` are what goodput asks of each request."""

    priority: int
    headroom: int = Field(default=0, ge=0)
    headroom_share: float = Field(default=1.0, gt=0, le=1)
    queue_limit: Size = _ENDLESS
    max_wait_s: Positive = _ENDLESS
    ttft_ms: Positive | None = None
    tpot_ms: Positive | None = None
    share: Share | None = None

    def value(self, name: str) -> PriorityClass:
        """As the scheduler has it; it takes a promise of both times only."""
        ttft, tpot = _nanos(self.ttft_ms, 1e6), _nanos(self.tpot_ms, 1e6)
        return PriorityClass(
            ClassName(name),
            self.priority,
            Blocks(self.headroom),
            self.queue_limit,
            Nanos(round(self.max_wait_s * 1e9)),
            None if ttft is None or tpot is None else Slo(ttft, tpot),
            self.headroom_share,
        )


class WorkloadPart(Part):
    """Requests of the paper's lengths."""

    mix: str = "m-m"


class TracePart(Part):
    """Requests of a file; a relative path begins at the scenario's directory."""

    file: Path
    format: str | None = None
    scale_rate: Positive = 1.0
    outputs: Annotated[int | str | None, BeforeValidator(parse_outputs)] = None


class Scenario(Part):
    """What is simulated.

    `step_time`: what policies expect of a step; without it what the engine's own is, but for the
    terms that they do not know.
    """

    engine: EnginePart = EnginePart()
    link: LinkPart = LinkPart()
    step_time: StepTimeSettings | None = None
    instances: Size = 16
    report_every_ms: Positive | None = None
    round_every_ms: Positive | None = None
    start_takes_s: float | None = Field(default=None, ge=0)
    classes: dict[Name, ClassPart] = Field(
        default={"high": ClassPart(priority=0), "normal": ClassPart(priority=1)}, min_length=1
    )
    policies: dict[Name, PolicyRules] = Field(default={"llx": PolicyRules()}, min_length=1)
    workload: WorkloadPart = WorkloadPart()
    trace: TracePart | None = None
    requests: Size | None = None
    rates: tuple[Positive, ...] = ()
    cv: Positive = 1.0
    seeds: Annotated[tuple[int, ...], BeforeValidator(parse_seeds)] = (0,)

    def plan(self) -> Plan:
        """What is to be run.

        Raises:
            ConfigError: Something contradicts something else, or names what there is not.
        """
        source = self._source()
        is_timed = isinstance(source.lengths, Trace)
        variants = (self._variant(name, rules) for name, rules in self.policies.items())
        return Plan(
            variants=tuple(variants),
            source=source,
            rates=self.rates or ((None,) if is_timed else (_DEFAULT_RATE,)),
            seeds=self.seeds,
            goals={
                ClassName(name): Goal(
                    each.ttft_ms and each.ttft_ms / 1e3, each.tpot_ms and each.tpot_ms / 1e3
                )
                for name, each in self.classes.items()
            },
        )

    def _source(self) -> Source:
        shares = [(ClassName(name), each.share) for name, each in self.classes.items()]
        taken = tuple((name, share) for name, share in shares if share is not None)
        rest = [name for name, share in shares if share is None]
        if sum(share for _, share in taken) > 1 or not (rest or taken):
            raise ConfigError("classes: the shares are more than all requests")
        trace = self.trace
        return Source(
            lengths=Mix(self.workload.mix)
            if trace is None
            else Trace(trace.file, trace.format, trace.scale_rate, trace.outputs),
            # Who has no share has the rest, the least urgent if there are several.
            default_class=max(rest or [taken[-1][0]], key=lambda each: self.classes[each].priority),
            count=self.requests,
            cv=self.cv,
            shares=taken,
            classes=tuple(name for name, _ in shares),
        )

    def _variant(self, name: str, rules: PolicyRules) -> Variant:
        base = paper_cluster(rules.base_of(name), self.instances)
        engine = self.engine.value(base.engine)
        ordered = sorted(self.classes.items(), key=lambda each: each[1].priority)
        pool = replace(
            base.pool,
            classes=tuple(each.value(name) for name, each in ordered),
            step_tokens=engine.max_num_batched_tokens,
            max_requests=engine.max_num_seqs,
        )
        if self.step_time is not None:
            pool = replace(pool, step_time=self.step_time.value())
        elif self.engine.step is not None:
            pool = replace(pool, step_time=_prediction(engine))
        cluster = replace(
            base,
            engine=engine,
            pool=rules.apply(pool),
            link=self.link.value(base.link),
            block_bytes=self.engine.block_bytes or base.block_bytes,
        )
        return Variant(name, self._timed(cluster))

    def _timed(self, cluster: ClusterConfig) -> ClusterConfig:
        times = {
            "report_every": _nanos(self.report_every_ms, 1e6),
            "round_every": _nanos(self.round_every_ms, 1e6),
            "start_takes": _nanos(self.start_takes_s, 1e9),
        }
        return replace(cluster, **given(times))


_DEFAULT_RATE: Final = 7.4


def load_scenario(path: Path) -> Scenario:
    """A scenario file.

    Raises:
        ConfigError: It cannot be read, or is wrong; every mistake with its line.
    """
    scenario = read_yaml(path, Scenario)
    if scenario.trace is None:
        return scenario
    file = path.parent / scenario.trace.file
    return scenario.model_copy(update={"trace": scenario.trace.model_copy(update={"file": file})})


def _prediction(engine: EngineConfig) -> Prediction:
    """What policies expect of a step: the engine's own time, but for what they do not know."""
    step = engine.step_time
    return Prediction(
        base=Nanos(step.base_ns + step.weights_ns),
        per_prefill_token=Nanos(step.prefill_token_ns),
        per_request=Nanos(step.decode_ns),
        per_block=Nanos(step.context_ktoken_ns * engine.block_size // 1000),
    )


def _nanos(value: float | None, unit: float) -> Nanos | None:
    return None if value is None else Nanos(round(value * unit))
