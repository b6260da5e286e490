"""Does moving a request change what it says, and what does it cost? The same load, twice.

    reference   every prompt, nothing moves
    moved       every prompt again, while its requests are moved back and forth without a pause

Both runs have the same requests at once, the same seeds, and prefix caches of their own (a salt per
run). Then every token must be the same. What a move costs is what the gateway saw of it.
"""

import random
import secrets
import statistics
import threading
import time
from collections.abc import Callable, Sequence
from concurrent.futures import ThreadPoolExecutor
from dataclasses import dataclass
from typing import Literal

from pydantic import BaseModel, ConfigDict

from llx.api import InstanceState, MigrateRequest, MigrationStatus, MoveOutcome, RequestStatus
from llx.client import Cluster
from llx.errors import ConflictError, LlxError, NotFoundError
from llx.openai_client import CompletionRequest, OpenAIClient

_FIRST_ID, _NUM_IDS = 10, 240
"""Prompts are of these token ids: every vocabulary has them, and no control token is among them."""
_POLL_S = 0.02
_REPORTS_S = 3.0
"""Gateways report what they saw of a move with their next heartbeats."""
_MIN_OUTPUTS = 2
_MAX_RUNS = 10


@dataclass(frozen=True, slots=True)
class Load:
    """What is asked, in both runs.

    Attributes:
        model: Of the cluster.
        prompt_tokens: Length of each request's prompt; as many requests as lengths.
        output_tokens: Length of each answer.
        at_once: Requests at a time.
        temperature: 0: greedy; else each request samples with a seed of its own.
        is_checked: Every move compares the KV at both ends.
        moves: The moved run is repeated until so many have moved, a few times at most.
        seed: Of prompts and of the choice of what moves.
    """

    model: str
    prompt_tokens: tuple[int, ...]
    output_tokens: int
    at_once: int
    temperature: float = 0.0
    is_checked: bool = False
    moves: int = 1
    seed: int = 1


class Verdict(BaseModel):
    """What came of it, as ``llx verify migration -o json`` prints it. Times are milliseconds.

    `mismatched_tokens` counts positions at which the two runs differ, missing tokens included;
    `differing_kv` moves whose KV was not the same at both ends. `stall`: a move's downtime less the
    median of that request's 32 gaps before; `stall_over_itl`: it as a share of the median of those
    medians. `reasons`: why requests failed or moves came to nothing.
    """

    model_config = ConfigDict(frozen=True, extra="forbid")

    api_version: Literal["v1"] = "v1"
    requests: int
    migrated: int
    kept: int
    failed: int
    mismatched_tokens: int
    differing_kv: int
    downtime_ms_p50: float | None
    downtime_ms_p95: float | None
    itl_ms_p50: float | None
    stall_ms_p50: float | None
    stall_ms_p95: float | None
    stall_over_itl_p50: float | None
    stall_over_itl_p95: float | None
    reasons: list[str] = []


@dataclass(slots=True)
class Progress:
    """How far a run is, for whoever watches."""

    phase: str
    tokens: int = 0
    done: int = 0
    moved: int = 0


Observe = Callable[[Progress], None]


def verify(
    gateway: OpenAIClient, control: Cluster, load: Load, observe: Observe = lambda _: None
) -> Verdict:
    """Run the load twice and compare.

    Raises:
        ConflictError: The model has not two ready instances between which requests can move.
        LlxError: The cluster fails in another way.
    """
    check_movable(control, load.model)
    reference = _Run(gateway, load, Progress("reference"), observe)
    reference.wait()
    progress, runs, moves = Progress("moved"), list[_Run](), list[MigrationStatus]()
    while len(runs) < _MAX_RUNS and progress.moved < load.moves:
        run = _Run(gateway, load, progress, observe)
        mover = _Mover(control, load, run, observe)
        mover.start()
        run.wait()
        runs.append(run)
        moves += mover.finish()
    return _judge(reference, runs, moves)


def check_movable(control: Cluster, model: str) -> list[str]:
    """The ready instances of a model, if requests can move between them.

    Raises:
        NotFoundError: There is no such model.
        ConflictError: There are fewer than two, or they cannot move requests.
    """
    status = control.status()
    if model not in {each.name for each in status.models}:
        known = ", ".join(each.name for each in status.models)
        raise NotFoundError(f'no model "{model}"', remedy=f"there are: {known}")
    instances = [each for each in status.instances if each.model == model]
    ready = [each for each in instances if each.state is InstanceState.READY]
    for each in ready:
        if each.cannot_migrate:
            raise ConflictError(f"{each.name} cannot move requests: {each.cannot_migrate}")
    usable = [each.name for each in ready if not each.is_cordoned]
    if len(usable) < 2:
        raise ConflictError(
            f"{model} has {len(usable)} ready instances, moving takes two", remedy="llx status"
        )
    return usable


class _Run:
    """All requests of a load, some at a time, each on a thread."""

    def __init__(
        self, gateway: OpenAIClient, load: Load, progress: Progress, observe: Observe
    ) -> None:
        self.prefix = f"verify-{secrets.token_hex(4)}-"
        self.tokens: list[list[int]] = [[] for _ in load.prompt_tokens]
        self.errors: list[str] = []
        self.progress = progress
        self._gateway = gateway
        self._load = load
        self._observe = observe
        self._pool = ThreadPoolExecutor(load.at_once)
        rng = random.Random(load.seed)
        prompts = [_prompt(rng, length) for length in load.prompt_tokens]
        self._futures = [self._pool.submit(self._ask, n, p) for n, p in enumerate(prompts)]

    @property
    def is_over(self) -> bool:
        return all(future.done() for future in self._futures)

    def wait(self) -> None:
        for future in self._futures:
            future.result()
        self._pool.shutdown()

    def _ask(self, number: int, prompt: tuple[int, ...]) -> None:
        load = self._load
        request = CompletionRequest(
            load.model,
            prompt,
            load.output_tokens,
            request_id=f"{self.prefix}{number}",
            temperature=load.temperature,
            seed=None if load.temperature == 0 else load.seed + number,
            cache_salt=self.prefix,
        )
        try:
            for piece in self._gateway.stream_completion(request):
                self.tokens[number].extend(piece.token_ids)
                self.progress.tokens += len(piece.token_ids)
                self._observe(self.progress)
        except LlxError as error:
            self.errors.append(f"request {number}: {error.message}")
        self.progress.done += 1
        self._observe(self.progress)


class _Mover(threading.Thread):
    """Moves a run's requests to and fro while it lasts, `at_once` moves at a time."""

    _AT_ONCE = 2

    def __init__(self, control: Cluster, load: Load, run: _Run, observe: Observe) -> None:
        super().__init__(name="mover", daemon=True)
        self._control = control
        self._load = load
        self._run = run
        self._observe = observe
        self._rng = random.Random(load.seed)
        self._ids: list[str] = []
        self._open: set[str] = set()
        self._failure: LlxError | None = None

    def run(self) -> None:
        """The thread's body."""
        try:
            while not self._run.is_over:
                self._look()
                time.sleep(_POLL_S)
        except LlxError as error:
            self._failure = error

    def finish(self) -> list[MigrationStatus]:
        """Wait for the last move and for what gateways saw; every move."""
        self.join()
        if self._failure is not None:
            raise self._failure
        deadline = time.monotonic() + _REPORTS_S
        while True:
            moves = self._control.migrations(self._ids) if self._ids else []
            if all(map(_is_told, moves)) or time.monotonic() > deadline:
                return moves
            time.sleep(_POLL_S)

    def _look(self) -> None:
        if self._open:
            for each in self._control.migrations(sorted(self._open)):
                if each.outcome is not None:
                    self._open.discard(each.id)
                    self._run.progress.moved += each.outcome is MoveOutcome.MOVED
                    self._observe(self._run.progress)
        room = self._AT_ONCE - len(self._open)
        if room <= 0:
            return
        instances = check_movable(self._control, self._load.model)
        mine = [each for each in self._control.requests().requests if self._is_movable(each)]
        for request in self._rng.sample(mine, min(room, len(mine))):
            others = [name for name in instances if name != request.instance]
            self._move(request, self._rng.choice(others))

    def _is_movable(self, request: RequestStatus) -> bool:
        has_begun = request.num_tokens - request.num_prompt >= _MIN_OUTPUTS
        is_free = request.state == "running" and not request.pinned and not request.migration
        return self._run.prefix in request.id and has_begun and is_free

    def _move(self, request: RequestStatus, target: str) -> None:
        order = MigrateRequest(
            request=request.id, target=target, is_checked=self._load.is_checked, user="verify"
        )
        try:
            report = self._control.migrate(order)
        except (NotFoundError, ConflictError):
            return  # it has ended meanwhile
        self._ids.extend(each.id for each in report.migrations)
        self._open.update(each.id for each in report.migrations)


def _prompt(rng: random.Random, length: int) -> tuple[int, ...]:
    return tuple(_FIRST_ID + rng.randrange(_NUM_IDS) for _ in range(length))


def _is_told(move: MigrationStatus) -> bool:
    if move.outcome is None:
        return False
    return move.outcome is not MoveOutcome.MOVED or move.downtime_ms is not None


def _judge(reference: _Run, runs: Sequence[_Run], moves: Sequence[MigrationStatus]) -> Verdict:
    errors = [text for each in (reference, *runs) for text in each.errors]
    done = [each for each in moves if each.outcome is MoveOutcome.MOVED]
    kept = [each for each in moves if each.outcome is MoveOutcome.KEPT]
    differing = [each for each in kept if "differ" in each.reason]
    downtimes = [each.downtime_ms for each in done if each.downtime_ms is not None]
    itls = [each.itl_ms for each in done if each.itl_ms]
    stalls = [each.stall_ms for each in done if each.stall_ms is not None and each.itl_ms]
    # By what is usual: a stream's own median is next to nothing where its tokens came in bunches.
    itl_p50 = _share(itls, 0.5)
    ratios = [each / itl_p50 for each in stalls] if itl_p50 else []
    return Verdict(
        requests=len(reference.tokens),
        migrated=len(done),
        kept=len(kept),
        failed=len(errors),
        mismatched_tokens=sum(
            sum(map(_mismatches, reference.tokens, each.tokens)) for each in runs
        ),
        differing_kv=len(differing),
        downtime_ms_p50=_share(downtimes, 0.5),
        downtime_ms_p95=_share(downtimes, 0.95),
        itl_ms_p50=itl_p50,
        stall_ms_p50=_share(stalls, 0.5),
        stall_ms_p95=_share(stalls, 0.95),
        stall_over_itl_p50=_share(ratios, 0.5),
        stall_over_itl_p95=_share(ratios, 0.95),
        reasons=[*errors, *sorted({each.reason for each in kept})],
    )


def _mismatches(one: Sequence[int], other: Sequence[int]) -> int:
    differing = sum(a != b for a, b in zip(one, other, strict=False))
    return differing + abs(len(one) - len(other))


def _share(values: Sequence[float], share: float) -> float | None:
    if not values:
        return None
    if share == 0.5:
        return round(statistics.median(values), 2)
    ordered = sorted(values)
    return round(ordered[min(len(ordered) - 1, int(len(ordered) * share))], 2)
