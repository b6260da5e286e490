"""Transition tables: what a machine does with an event, and where that may lead."""

from collections.abc import Callable, Collection, Iterable, Mapping
from dataclasses import dataclass
from enum import Enum
from typing import Any, Generic, TypeVar

M = TypeVar("M")
S = TypeVar("S", bound=Enum)


@dataclass(frozen=True, slots=True)
class Rule(Generic[M, S]):
    """In each of `states`, `event` makes the machine `act` and go to one of `to`.

    `act` gets the machine and the event, and returns the state to go to; None: no other state.
    Where `to` is empty there never is another.
    """

    states: tuple[S, ...]
    event: type
    to: tuple[S, ...]
    act: Callable[[M, Any], S | None]

    def ways(self, state: S) -> tuple[S, ...]:
        """Where the event may lead from `state`."""
        return self.to or (state,)


Table = Mapping[tuple[S, type], Rule[M, S]]


def make_table(rules: Iterable[Rule[M, S]]) -> Table[S, M]:
    """The rules by state and event. A pair without a rule is ignored: news that came too late."""
    table: dict[tuple[S, type], Rule[M, S]] = {}
    for rule in rules:
        for state in rule.states:
            key = (state, rule.event)
            assert key not in table, f"two rules for {key}"
            table[key] = rule
    return table


def draw(table: Table[S, M], initial: S, ends: Collection[S]) -> str:
    """The table as a mermaid state diagram; events that lead to one state share an arrow."""
    arrows: dict[tuple[str, str], list[str]] = {}
    for (state, event), rule in table.items():
        for to in rule.ways(state):
            arrows.setdefault((state.value, to.value), []).append(event.__name__)
    lines = ["stateDiagram-v2", f"    [*] --> {initial.value}"]
    lines += [
        f"    {one} --> {other}: {', '.join(names)}" for (one, other), names in arrows.items()
    ]
    lines += [f"    {state.value} --> [*]" for state in type(initial) if state in ends]
    return "\n".join(lines)
