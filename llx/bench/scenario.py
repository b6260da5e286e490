"""A benchmark as a file: what is asked, of whom, in which variants, and what counts as good.

`examples/bench/` has commented ones. Nothing here runs anything.
"""

import math
from pathlib import Path
from typing import Annotated, Literal, Self

from pydantic import (
    BaseModel,
    ConfigDict,
    Field,
    JsonValue,
    ValidationInfo,
    field_validator,
    model_validator,
)

from llx.cluster_file import InstanceRange
from llx.sim.trace_files import FORMATS
from llx.sim.workload import LIKE, MIXES
from llx.yaml_reader import read_yaml

_NAME = r"^[A-Za-z0-9][A-Za-z0-9._-]{0,39}$"
Name = Annotated[str, Field(pattern=_NAME)]
Tokens = Annotated[int, Field(ge=1, le=1_000_000)]
Share = Annotated[float, Field(ge=0, le=1)]
Seconds = Annotated[float, Field(ge=0, le=86_400)]
Victim = Annotated[str, Field(max_length=100)]
Rate = Annotated[float, Field(gt=0, le=100_000)]


class _Part(BaseModel):
    model_config = ConfigDict(frozen=True, extra="forbid")


def _neighbour(path: Path, info: ValidationInfo) -> Path:
    """A path of the file: relative to the directory that it lies in."""
    base = info.context
    return base / path.expanduser() if isinstance(base, Path) else path.expanduser()


class TargetPart(_Part):
    """Who is asked: an OpenAI server, a cluster of llx, the simulator; or as the command line says.

    `simulator` is a file of `llx sim run`, whose cluster it is; relative: the scenario's neighbour.
    """

    url: str | None = None
    context: str | None = None
    simulator: Path | None = None

    @model_validator(mode="after")
    def _one_of_them(self) -> Self:
        if sum(each is not None for each in (self.url, self.context, self.simulator)) > 1:
            raise ValueError("one of url, context and simulator")
        return self

    @field_validator("simulator")
    @classmethod
    def _beside(cls, path: Path | None, info: ValidationInfo) -> Path | None:
        return None if path is None else _neighbour(path, info)


class Ramp(_Part):
    """The rate grows evenly from `from_rate` to the full one."""

    from_rate: Rate
    over_s: Annotated[float, Field(gt=0, le=86_400)]


class Phase(_Part):
    """For so long, `share` of the rate."""

    share: Annotated[float, Field(gt=0, le=1)]
    for_s: Annotated[float, Field(gt=0, le=86_400)]


class Arrivals(_Part):
    """When requests come: gaps have a gamma distribution; `cv` 1 is Poisson, 0 a metronome.

    `phases` follow each other, again from the first after the last one: a load that comes and goes.
    """

    rate: Rate
    cv: Annotated[float, Field(ge=0, le=100)] = 1.0
    ramp: Ramp | None = None
    phases: tuple[Phase, ...] = ()

    @model_validator(mode="after")
    def _one_course(self) -> Self:
        if self.ramp is not None and self.phases:
            raise ValueError("either ramp or phases")
        return self

    @property
    def mean_share(self) -> float:
        """What comes on average over a cycle of phases, as a share of the rate."""
        if not self.phases:
            return 1.0
        lasts_s = math.fsum(each.for_s for each in self.phases)
        return math.fsum(each.share * each.for_s for each in self.phases) / lasts_s


class Trace(_Part):
    """Arrivals and lengths of a recorded load, `speed` times as fast.

    Relative paths are the scenario's neighbours. `format`: None: as the file looks.
    """

    file: Path
    format: str | None = None
    speed: Annotated[float, Field(gt=0)] = 1.0

    @field_validator("format")
    @classmethod
    def _known(cls, name: str | None) -> str | None:
        if name is not None and name not in FORMATS:
            raise ValueError(f"no trace format {name!r}: it is one of {', '.join(FORMATS)}")
        return name

    @field_validator("file")
    @classmethod
    def _beside(cls, path: Path, info: ValidationInfo) -> Path:
        return _neighbour(path, info)


class Between(_Part):
    """Evenly drawn from `least` to `most`, both included."""

    least: Tokens
    most: Tokens

    @model_validator(mode="after")
    def _in_order(self) -> Self:
        if self.most < self.least:
            raise ValueError("most is less than least")
        return self


class Kind(_Part):
    """Requests of one kind among others: `share` is a weight."""

    share: Annotated[float, Field(gt=0)]
    prompt: Tokens | Between
    output: Tokens | Between


class Lengths(_Part):
    """Tokens of prompts and outputs: as drawn here, of several `kinds` of requests, or a `mix`.

    Mixes are the Llumnix paper's: s-s … l-l, and sharegpt-like, burstgpt-like.
    """

    prompt: Tokens | Between | None = None
    output: Tokens | Between | None = None
    kinds: tuple[Kind, ...] = ()
    mix: str | None = None

    @model_validator(mode="after")
    def _one_way(self) -> Self:
        ways = (self.prompt is not None, bool(self.kinds), self.mix is not None)
        if (self.prompt is None) != (self.output is None) or sum(ways) != 1:
            raise ValueError("either prompt and output, or kinds, or mix")
        if self.mix is not None and self.mix not in (*MIXES, *LIKE):
            raise ValueError(f"no mix {self.mix!r}: it is one of {', '.join((*MIXES, *LIKE))}")
        return self


class Prefixes(_Part):
    """Prompts begin with one of `count` shared texts of `tokens` tokens; in a session, the same."""

    count: Annotated[int, Field(ge=1, le=100_000)]
    tokens: Tokens
    share: Share = 1.0


class Sessions(_Part):
    """Conversations: each turn's prompt repeats the turns before it, `gap_s` after the last one.

    The answers that it repeats are drawn, too, so that a schedule does not wait for a server.
    """

    turns: Annotated[int, Field(ge=2, le=1000)]
    gap_s: Seconds


class Workload(_Part):
    """The requests of one run.

    Attributes:
        requests: How many; of a trace, at most so many.
        scale: Multiplies all lengths.
        longest: No prompt is longer, and no output; a prompt with all that is put before it,
            too: what would be is cut.
        classes: Share of the requests that ask for this priority class.
    """

    requests: Annotated[int, Field(ge=1, le=10_000_000)]
    arrivals: Arrivals | None = None
    lengths: Lengths | None = None
    trace: Trace | None = None
    scale: Annotated[float, Field(gt=0, le=1000)] = 1.0
    longest: Tokens | None = None
    classes: dict[Name, Share] = {}
    prefixes: Prefixes | None = None
    sessions: Sessions | None = None

    def of_warmup(self, requests: int) -> Self:
        """A few of its kind, at its full rate."""
        arrivals = self.arrivals and self.arrivals.model_copy(update={"phases": ()})
        return self.model_copy(update={"requests": requests, "arrivals": arrivals})

    @model_validator(mode="after")
    def _one_source(self) -> Self:
        if (self.arrivals is None) != (self.lengths is None) or (self.trace is None) == (
            self.arrivals is None
        ):
            raise ValueError("either arrivals and lengths, or trace")
        if self.trace is not None and self.sessions is not None:
            raise ValueError("sessions have no place in a trace")
        if sum(self.classes.values()) > 1 + 1e-9:
            raise ValueError("the shares of classes are more than 1 together")
        return self


class Fault(_Part):
    """Something that an operator, or bad luck, does to the cluster in the middle of a run.

    `restart` stops an instance with no time for its requests to finish, `rollout` replaces all
    instances of the model one by one, as `llx rollout --again` does. `kill`, `freeze` and `slow`
    hit an instance's process, `partition` cuts a host off from the others; the last three end
    after `for_s` seconds. What a fault has cordoned or drained is put back to use after the run.
    """

    at_s: Seconds
    do: Literal[
        "cordon", "uncordon", "drain", "restart", "rollout", "kill", "freeze", "slow", "partition"
    ]
    instance: Victim = ""
    host: Victim = ""
    for_s: Annotated[float, Field(gt=0, le=3600)] | None = None

    @property
    def is_struck(self) -> bool:
        """Whether it is done on the host itself, not by the cluster's head."""
        return self.do in {"kill", "freeze", "slow", "partition"}

    @model_validator(mode="after")
    def _hits_something(self) -> Self:
        takes = {"rollout": (), "partition": ("host",)}.get(self.do, ("instance",))
        given = tuple(name for name in ("instance", "host") if getattr(self, name))
        if given != takes:
            raise ValueError(
                f"{self.do} takes {takes[0] if takes else 'neither instance nor host'}"
            )
        lasts = self.do in {"freeze", "slow", "partition"}
        if lasts != (self.for_s is not None):
            raise ValueError(f"{self.do} {'takes' if lasts else 'has no'} for_s")
        return self


class Variant(_Part):
    """One side of a comparison: what differs from the other ones.

    Attributes:
        name: In tables and file names.
        url: Another server.
        rate: Another rate of arrivals.
        extra_body: Further fields of each request.
        served_as: The priority class that is asked for instead of one of the workload's; results
            keep the workload's name.
        policy: Rules of the cluster while it is its turn: dotted keys of a model's `scheduling`, as
            `llx policy set` takes them.
        instances: A number, or a range {min, max}: how many the model has while it is its turn,
            which begins with `min` of them.
        faults: Instead of the scenario's; none of them: [].
    """

    name: Name
    url: str | None = None
    rate: Rate | None = None
    extra_body: dict[str, object] = {}
    served_as: dict[Name, Name] = {}
    policy: dict[str, JsonValue] = {}
    instances: InstanceRange | None = None
    faults: tuple[Fault, ...] | None = None


class Slo(_Part):
    """A good request meets each of these."""

    ttft_ms: Annotated[float, Field(gt=0)] | None = None
    tpot_ms: Annotated[float, Field(gt=0)] | None = None
    e2el_ms: Annotated[float, Field(gt=0)] | None = None


class Scenario(_Part):
    """The whole file.

    Attributes:
        name: Of the run directory, unless told otherwise.
        model: As served; default: the only one.
        warmup: Requests before each run, of its kind, which do not count.
        repetitions: Each variant runs so often, in turns of shuffled order.
        seed: Of the schedule; each repetition has its own, the same for all variants.
        silence_s: A stream that is silent for so long has failed.
    """

    name: Name
    target: TargetPart = TargetPart()
    model: str | None = None
    workload: Workload
    variants: Annotated[tuple[Variant, ...], Field(min_length=1)] = (Variant(name="base"),)
    faults: tuple[Fault, ...] = ()
    slo: Slo = Slo()
    warmup: Annotated[int, Field(ge=0, le=100_000)] = 0
    repetitions: Annotated[int, Field(ge=1, le=1000)] = 1
    seed: int = 1
    silence_s: Annotated[float, Field(gt=0)] = 300.0

    def faults_of(self, variant: Variant) -> tuple[Fault, ...]:
        """What is done to the cluster while it is this variant's turn."""
        return self.faults if variant.faults is None else variant.faults

    @property
    def all_faults(self) -> tuple[Fault, ...]:
        """Of any variant."""
        return tuple(fault for each in self.variants for fault in self.faults_of(each))

    @model_validator(mode="after")
    def _fits_together(self) -> Self:
        names = [each.name for each in self.variants]
        if len(set(names)) < len(names):
            raise ValueError("two variants have the same name")
        if any(each.url and each.policy for each in self.variants):
            raise ValueError("a policy is of the cluster: a variant with a url has none")
        if any(each.url and each.instances for each in self.variants):
            raise ValueError("instances are of the cluster: a variant with a url has none")
        if any(each.url and self.faults_of(each) for each in self.variants):
            raise ValueError("faults are done to the cluster: a variant with a url has none")
        asked = {name for each in self.variants for name in each.served_as}
        if unknown := sorted(asked - set(self.workload.classes)):
            raise ValueError(f"served_as: the workload has no class {', '.join(unknown)}")
        if self.workload.trace is not None and any(each.rate for each in self.variants):
            raise ValueError("a trace has its own rate: a variant cannot change it")
        return self


def load_scenario(path: Path) -> Scenario:
    """The scenario of a file.

    Raises:
        ConfigError: Says line and mistake.
    """
    return read_yaml(path, Scenario, base=path.resolve().parent)
