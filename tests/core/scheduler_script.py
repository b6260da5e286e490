"""The language of `tests/scenarios/*.txt`: events in, decisions with their reasons out.

A line is a comment (#), an event or a command to the reader; what the scheduler answers follows it,
indented, after ``=>``. Sizes are blocks of 16 tokens.

    pool CLASS:PRIORITY[:HEADROOM] …   [KEY=VALUE …]     one pool, `m`; keys as in `PoolConfig`;
              unless said dispatch=freest overtaking=0 growth_tokens=0: a story has one subject
    set KEY=VALUE …                                      the same pool by other rules
    join NAME …                                          instances
    load NAME free=N [total=N] [CLASS=RUNNING] [waiting=CLASS:COUNT:BLOCKS] [head=BLOCKS]
              [tokens=N] [covers=REQUEST,…] [block=TOKENS]
                                                         a report; total is 100 unless said
    up | cordon | terminate | lose | leave NAME
    arrive REQUEST CLASS BLOCKS [hit=NAME:BLOCKS] [waited=S] [held=S]     withdraw REQUEST
    moved | kept | gone | none MOVE                      how a move has ended
    failed COUNT                                         so many instances do not start
    tick      pause      resume      step      drop      drop: the pool is no more
    after SECONDS                                        time passes
    show                                                 every instance's freeness, term by term
"""

import dataclasses
from collections.abc import Iterator

from llx.core.model import (
    Blocks,
    ClassLoad,
    ClassName,
    InstanceId,
    InstanceLoad,
    Nanos,
    PoolName,
    RequestId,
    Tokens,
)
from llx.core.scheduler.commands import (
    AddInstances,
    Dispatch,
    Emptied,
    Hold,
    Move,
    Refuse,
    Terminate,
)
from llx.core.scheduler.config import PoolConfig, PriorityClass, Rescheduling, Scaling, Slo
from llx.core.scheduler.events import (
    InstanceChanged,
    InstanceJoined,
    InstanceLeft,
    InstanceState,
    LoadReported,
    MoveEnded,
    MoveId,
    MoveOutcome,
    Paused,
    PoolConfigured,
    PoolGone,
    RequestArrived,
    RequestWithdrawn,
    Resumed,
    StartFailed,
    Stepped,
    Ticked,
)
from llx.core.scheduler.scheduler import Scheduler

POOL = PoolName("m")
BLOCK = 16
SECOND = 1_000_000_000
STATES = {
    "up": InstanceState.UP,
    "cordon": InstanceState.CORDONED,
    "terminate": InstanceState.TERMINATING,
    "lose": InstanceState.LOST,
}
ROUNDS = {
    "tick": lambda _: Ticked(),
    "pause": Paused,
    "resume": Resumed,
    "step": Stepped,
    "drop": PoolGone,
}
OUTCOMES = {each.value for each in MoveOutcome}
DURATIONS = {
    "age_after", "charge_expires_after", "rest", "retry_after", "deadline", "sustain", "cooldown",
    "grow_after", "start_deadline", "lost_grace",
}  # fmt: skip


class Script:
    """One scenario being played."""

    def __init__(self) -> None:
        self.scheduler = Scheduler()
        self.now = SECOND
        normal = PriorityClass(ClassName("normal"), 10)
        self.config = PoolConfig(POOL, (normal,), "freest", overtaking=0, growth_tokens=Tokens(0))

    def play(self, text: str) -> str:
        """The scenario with its answers made anew."""
        lines = []
        for line in text.splitlines():
            if line.startswith("  =>"):
                continue
            lines.append(line)
            if line.strip() and not line.startswith("#"):
                lines.extend(f"  => {each}" for each in self.say(line))
        return "\n".join(lines) + "\n"

    def say(self, line: str) -> Iterator[str]:
        verb, *words = line.split()
        if verb == "after":
            self.now += int(float(words[0].rstrip("s")) * SECOND)
            return
        if verb == "show":
            yield from self.show()
            return
        for event in self.events(verb, words):
            for command in self.scheduler.handle(event, Nanos(self.now)):
                yield describe(command)

    def events(self, verb, words):
        plain = [word for word in words if "=" not in word]
        keys = dict(word.split("=", 1) for word in words if "=" in word)
        match verb:
            case "pool" | "set":
                if plain:
                    classes = tuple(priority_class(each) for each in plain)
                    self.config = dataclasses.replace(self.config, classes=classes)
                for key, value in keys.items():
                    self.config = configured(self.config, key, value)
                yield PoolConfigured(self.config)
            case "join":
                yield from (InstanceJoined(POOL, InstanceId(name)) for name in plain)
            case "load":
                yield self.load(plain[0], keys)
            case "up" | "cordon" | "terminate" | "lose":
                yield InstanceChanged(InstanceId(plain[0]), STATES[verb])
            case "leave":
                yield InstanceLeft(InstanceId(plain[0]))
            case "arrive":
                yield arrival(*plain, **keys)
            case "withdraw":
                yield RequestWithdrawn(POOL, RequestId(plain[0]))
            case "failed":
                yield StartFailed(POOL, int(plain[0]))
            case _ if verb in ROUNDS:
                yield ROUNDS[verb](POOL)
            case _:
                assert verb in OUTCOMES, f"a scenario says {verb!r}"
                yield MoveEnded(POOL, MoveId(int(plain[0])), MoveOutcome(verb))

    def load(self, name, keys):
        total, priorities = int(keys.pop("total", 100)), self.priorities()
        waiting = {}
        if "waiting" in keys:
            for each in keys.pop("waiting").split(","):
                label, count, blocks = each.split(":")
                waiting[label] = (int(count), int(blocks))
        head, covers = keys.pop("head", None), keys.pop("covers", "")
        block = int(keys.pop("block", BLOCK))
        free, tokens = int(keys.pop("free")), keys.pop("tokens", None)
        running = {label: int(count) for label, count in keys.items()}
        classes = {
            priorities[label]: ClassLoad(
                running.get(label, 0), waiting.get(label, (0, 0))[0],
                Blocks(waiting.get(label, (0, 0))[1]),
            )
            for label in {**running, **waiting}
        }  # fmt: skip
        demand = sum(blocks for _, blocks in waiting.values())
        load = InstanceLoad(
            total=Blocks(total), free=Blocks(free), block_size=Tokens(block),
            num_running=sum(running.values()),
            num_waiting=sum(count for count, _ in waiting.values()),
            waiting_demand=Blocks(demand),
            waiting_tokens=Tokens(int(tokens) if tokens else demand * BLOCK),
            classes=classes,
        )  # fmt: skip
        covered = tuple(RequestId(each) for each in covers.split(",") if each)
        return LoadReported(
            InstanceId(name), load, covered, None if head is None else Blocks(int(head))
        )

    def priorities(self):
        return {each.name: each.priority for each in self.config.classes}

    def show(self) -> Iterator[str]:
        for instance in self.scheduler.pools[POOL].instances.values():
            if not instance.is_known:
                yield f"{instance.name} has not reported"
                continue
            usage = instance.usage()
            terms = "".join(
                f" - {getattr(usage, term)} {term.replace('_', ' ')}"
                for term in ("used", "headroom", "queue_head", "charged", "incoming", "nominated")
                if getattr(usage, term)
            )
            if usage.is_terminating:
                terms += " - infinity"
            formula = f"({usage.total}{terms}) / {max(1, usage.batch)}"
            yield f"{instance.name} freeness {instance.freeness:.6g} = {formula}"


def priority_class(text):
    name, priority, *headroom = text.split(":")
    return PriorityClass(
        ClassName(name), int(priority), Blocks(int(headroom[0]) if headroom else 0)
    )


def configured(config, key, value):
    table, _, name = key.rpartition(".")
    if table in ("rescheduling", "scaling"):
        inner = dataclasses.replace(getattr(config, table), **{name: typed(table, name, value)})
        return dataclasses.replace(config, **{table: inner})
    if table:
        classes = tuple(
            dataclasses.replace(each, **{name: class_value(name, value)})
            if each.name == table
            else each
            for each in config.classes
        )
        return dataclasses.replace(config, classes=classes)
    return dataclasses.replace(config, **{key: typed("", key, value)})


def class_value(name, value):
    if name == "slo":
        ttft, tpot = value.split(":")
        return Slo(Nanos(int(float(ttft) * SECOND)), Nanos(int(float(tpot) * SECOND)))
    if name == "headroom_share":
        return float(value)
    return Nanos(int(float(value) * SECOND)) if name == "max_wait" else int(value)


def typed(table, name, value):
    if name in DURATIONS:
        return Nanos(int(float(value) * SECOND))
    if name == "steps":
        return tuple(each for each in value.split(",") if each)
    owner = {"rescheduling": Rescheduling(), "scaling": Scaling()}.get(table)
    if owner is None:
        owner = PoolConfig(POOL, (PriorityClass(ClassName("normal"), 10),))
    kind = type(getattr(owner, name))
    return value == "true" if kind is bool else kind(value)


def arrival(request, label, blocks, hit="", waited="0", held=None, patience=None):
    hits = tuple(
        (InstanceId(each.split(":")[0]), Tokens(int(each.split(":")[1]) * BLOCK))
        for each in hit.split(",")
        if each
    )
    return RequestArrived(
        POOL, RequestId(request), ClassName(label), Tokens(int(blocks) * BLOCK - 1),
        Nanos(int(float(waited) * SECOND)), hits,
        None if held is None else Nanos(int(float(held) * SECOND)),
        None if patience is None else Nanos(int(float(patience) * SECOND)),
    )  # fmt: skip


def describe(command) -> str:
    match command:
        case Dispatch():
            return f"send {command.request} to {command.instance}: {command.decision}"
        case Hold():
            why = f": {command.decision}" if command.decision else ""
            waiting = f"{command.num_waiting} {command.priority_class} waiting"
            return f"hold {command.request}, {waiting}{why}"
        case Refuse():
            after = command.retry_after
            again = "" if after is None else f", again in {after / SECOND:g} s"
            return f"refuse {command.request}: {command.reason.value}{again}"
        case Move():
            rule = command.rule
            urgent = (
                "any class" if rule.least_priority is None else f"priority >= {rule.least_priority}"
            )
            about = "" if rule.about is None else f", about {rule.about} blocks"
            return (
                f"move {command.move} from {command.source} to {command.target}"
                f" ({rule.choice} of {urgent}{about}, at most {rule.at_most}): {command.decision}"
            )
        case AddInstances():
            return f"add {command.count}: {command.decision}"
        case Terminate():
            return f"terminate {command.instance}: {command.decision}"
        case Emptied():
            return f"{command.instance} is empty"
    raise AssertionError(command)
