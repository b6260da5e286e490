"""How many instances meet promises, by policy: the smallest number that every seed agrees to."""

import re
from collections.abc import Callable, Sequence
from dataclasses import dataclass, replace
from typing import Final

from pydantic import BaseModel, ConfigDict

from llx.core.scheduler.policies import Policies
from llx.errors import ConfigError
from llx.sim.figures import Interval, interval
from llx.sim.plan import Plan, Variant
from llx.sim.run import Watch, run_name, run_once
from llx.sim.samples import ALL, OF_CLASSES, Run
from llx.sim.supply import Supply

_NAMES: Final = {"ttft": "prefill", "tpot": "decode", "e2e": "request"}
_TARGET: Final = re.compile(
    r"(?:(?P<cls>[\w.-]+):)?(?P<name>ttft|tpot|e2e)_(?P<which>mean|p50|p90|p99)"
)


@dataclass(frozen=True, slots=True)
class Target:
    """A promise about a figure.

    Attributes:
        text: As it was asked for: ``ttft_p99``, ``high:tpot_mean``.
        priority_class: Whose; `ALL`: of all requests.
        figure: Its name in `OF_CLASSES`.
        limit_s: At most.
    """

    text: str
    priority_class: str
    figure: str
    limit_s: float

    @classmethod
    def parse(cls, text: str, limit_s: float) -> "Target":
        """Of ``[CLASS:]ttft|tpot|e2e_mean|p50|p90|p99``.

        Raises:
            ConfigError: It is none.
        """
        match = _TARGET.fullmatch(text)
        if match is None:
            raise ConfigError(
                f"no figure {text!r}", remedy="ttft_p99, tpot_mean, e2e_p90, high:ttft_p99, …"
            )
        figure = f"{_NAMES[match['name']]}_{match['which']}_s"
        return cls(text, match["cls"] or ALL, figure, limit_s)

    def of(self, run: Run) -> float:
        """The figure of a run; 0 where nobody is of the class."""
        known = self.priority_class in run.samples
        return OF_CLASSES[self.figure](run, self.priority_class) if known else 0.0


class _Value(BaseModel):
    model_config = ConfigDict(frozen=True, extra="forbid")


class Reached(_Value):
    """A promise, and what came of it with the instances that are enough; seconds."""

    target: str
    limit_s: float
    value: Interval


class Size(_Value):
    """How many instances a policy needs.

    `instances`: the fewest that were enough with every seed; None: not even the most allowed are.
    `by_seed`: the fewest with each seed alone, `mean` their mean and its 95 % interval.
    """

    policy: str
    rate: float | None
    instances: int | None
    by_seed: tuple[int | None, ...]
    mean: Interval | None
    reached: tuple[Reached, ...]


def sizes(
    plan: Plan,
    supply: Supply,
    policies: Policies,
    targets: Sequence[Target],
    most: int,
    watch: Watch,
) -> list[Size]:
    """Find them, for every rate and policy.

    That more instances never make it worse is what the search goes by; what it finds was run with
    every seed. A run that refuses a request meets nothing.

    Args:
        plan: What is run; its numbers of instances do not matter.
        supply: Of its requests.
        policies: That its pools may name.
        targets: All of them are to be met.
        most: Instances at most.
        watch: Told the run under way, and how many are done.

    Raises:
        ConfigError: A target is of a class that there is not, or a policy has a number of its own.
    """
    _check(plan, targets)
    search = _Search(plan, supply, policies, targets, watch)
    return [search.size(variant, rate, most) for rate in plan.rates for variant in plan.variants]


def smallest(most: int, is_met: Callable[[int], bool], guess: int | None = None) -> int | None:
    """The smallest of 1 … `most` that is met, if all above one that is met are; else None.

    Args:
        most: The largest.
        is_met: Asked as seldom as possible.
        guess: Where to look first, and then around it; None: halve.
    """
    low, high, step = 0, most + 1, 1  # not met … met, as far as is known
    at = min(max(1, guess), most) if guess else (low + high) // 2
    while high - low > 1:
        if is_met(at):
            high = at
            at = max(low + 1, high - step) if guess and low == 0 else (low + high) // 2
        else:
            low = at
            at = min(high - 1, low + step) if guess and high > most else (low + high) // 2
        step *= 2
    return high if high <= most else None


class _Search:
    """Runs what is asked for, each once."""

    def __init__(
        self,
        plan: Plan,
        supply: Supply,
        policies: Policies,
        targets: Sequence[Target],
        watch: Watch,
    ) -> None:
        self._plan = plan
        self._supply = supply
        self._policies = policies
        self._targets = targets
        self._watch = watch
        self._num_runs = 0

    def size(self, variant: Variant, rate: float | None, most: int) -> Size:
        """Of one policy at one rate."""
        seen: dict[tuple[int, int], list[float] | None] = {}

        def values(seed: int, count: int) -> list[float] | None:
            """Of the targets; None: not all of them are met."""
            if (seed, count) not in seen:
                seen[seed, count] = self._values(variant, rate, seed, count)
            return seen[seed, count]

        by_seed: list[int | None] = []
        for seed in self._plan.seeds:
            guess = by_seed[-1] if by_seed else None
            by_seed.append(
                smallest(most, lambda count, seed=seed: values(seed, count) is not None, guess)  # type: ignore[misc]
            )
        known = [each for each in by_seed if each is not None]
        is_complete = len(known) == len(by_seed)
        enough = self._enough(values, max(known), most) if is_complete else None
        return Size(
            policy=variant.policy,
            rate=rate,
            instances=enough,
            by_seed=tuple(by_seed),
            mean=interval([float(each) for each in known]) if is_complete else None,
            reached=() if enough is None else self._reached(values, enough),
        )

    def _enough(
        self, values: Callable[[int, int], list[float] | None], fewest: int, most: int
    ) -> int | None:
        """From what the hardest seed needs on, the first number that all seeds agree to."""
        return next(
            (
                count
                for count in range(fewest, most + 1)
                if all(values(seed, count) is not None for seed in self._plan.seeds)
            ),
            None,
        )

    def _reached(
        self, values: Callable[[int, int], list[float] | None], count: int
    ) -> tuple[Reached, ...]:
        figures = [values(seed, count) or [] for seed in self._plan.seeds]
        return tuple(
            Reached(target=each.text, limit_s=each.limit_s, value=interval(column))
            for each, column in zip(self._targets, zip(*figures, strict=True), strict=True)
        )

    def _values(
        self, variant: Variant, rate: float | None, seed: int, count: int
    ) -> list[float] | None:
        name = run_name(self._plan, variant.policy, rate, seed)
        self._watch(f"{name}: {count} instances", self._num_runs)
        cluster = replace(variant.cluster, num_instances=count)
        requests = self._supply.requests(seed, rate)
        run = run_once(
            self._plan, replace(variant, cluster=cluster), requests, self._policies, seed
        )
        self._num_runs += 1
        values = [each.of(run) for each in self._targets]
        is_met = all(
            value <= each.limit_s for value, each in zip(values, self._targets, strict=True)
        )
        return values if is_met and not run.samples[ALL].num_refused else None


def _check(plan: Plan, targets: Sequence[Target]) -> None:
    for each in plan.variants:
        pool = each.cluster.pool
        if pool.scaling.rule != "none":
            raise ConfigError(
                f"policy {each.policy} scales by itself: it has no number to be found"
            )
    known = {ALL, *plan.goals}
    for target in targets:
        if target.priority_class not in known:
            raise ConfigError(f"{target.text}: there is no class {target.priority_class!r}")
