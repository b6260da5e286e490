"""What is kept of one request of a benchmark: when things happened, and how many tokens came.

Times are of the monotonic clock, in seconds, until `Record.as_line` counts them from the run's
beginning.
"""

import json
from array import array
from dataclasses import dataclass, field
from enum import StrEnum

MICROSECONDS = 1e6


class Outcome(StrEnum):
    """How a request ended."""

    OK = "ok"
    FAILED = "failed"
    CUT = "cut"
    """By the end of the measurement, not by the server."""


@dataclass(slots=True)
class Record:
    """One request. The stream that carries it writes here; nobody else does.

    Attributes:
        number: In the schedule, from 0.
        planned_at: When it should have been sent. Latencies count from here.
        num_prompt: Tokens asked with.
        max_outputs: Tokens asked for.
        priority_class: The class it asked for; "": the server's default.
        sent_at: When its bytes were handed to the operating system.
        first_at: When its first token came.
        last_at: When its latest token came.
        num_outputs: Tokens that came.
        gaps_us: Microseconds between events that brought tokens, rounded.
        usage_outputs: Tokens, as the server counted them at the end.
        instance: That the gateway named; "" if it named none.
        error: Why it failed.
    """

    number: int
    planned_at: float
    num_prompt: int
    max_outputs: int
    priority_class: str = ""
    sent_at: float | None = None
    first_at: float | None = None
    last_at: float | None = None
    num_outputs: int = 0
    gaps_us: "array[int]" = field(default_factory=lambda: array("I"))
    usage_outputs: int | None = None
    instance: str = ""
    outcome: Outcome = Outcome.CUT
    error: str = ""

    def add_tokens(self, count: int, now: float) -> None:
        """`count` tokens came in one event."""
        if self.last_at is None:
            self.first_at = now
        else:
            self.gaps_us.append(round((now - self.last_at) * MICROSECONDS))
        self.last_at = now
        self.num_outputs += count

    @property
    def lateness_s(self) -> float | None:
        """How long after its time it was sent."""
        return None if self.sent_at is None else self.sent_at - self.planned_at

    @property
    def ttft_s(self) -> float | None:
        """First token - arrival."""
        return None if self.first_at is None else self.first_at - self.planned_at

    @property
    def e2e_s(self) -> float | None:
        """Last token - arrival."""
        return None if self.last_at is None else self.last_at - self.planned_at

    @property
    def tpot_s(self) -> float | None:
        """(E2E - TTFT) / (n - 1); None of an answer of one token."""
        if self.first_at is None or self.last_at is None or self.num_outputs < 2:
            return None
        return (self.last_at - self.first_at) / (self.num_outputs - 1)

    def as_line(self, began_at: float) -> str:
        """One line of JSON, times in seconds from the run's beginning."""

        def since(at: float | None) -> float | None:
            return None if at is None else round(at - began_at, 6)

        return json.dumps(
            {
                "number": self.number,
                "outcome": self.outcome,
                "error": self.error,
                "class": self.priority_class,
                "instance": self.instance,
                "planned_s": since(self.planned_at),
                "sent_s": since(self.sent_at),
                "first_s": since(self.first_at),
                "last_s": since(self.last_at),
                "input_tokens": self.num_prompt,
                "max_tokens": self.max_outputs,
                "output_tokens": self.num_outputs,
                "usage_tokens": self.usage_outputs,
                "gaps_us": list(self.gaps_us),
            },
            separators=(",", ":"),
        )


def record_of(line: str) -> Record:
    """The record of a line that `Record.as_line` wrote; the run began at 0."""
    data = json.loads(line)
    return Record(
        number=data["number"],
        planned_at=data["planned_s"],
        num_prompt=data["input_tokens"],
        max_outputs=data["max_tokens"],
        priority_class=data["class"],
        sent_at=data["sent_s"],
        first_at=data["first_s"],
        last_at=data["last_s"],
        num_outputs=data["output_tokens"],
        gaps_us=array("I", data["gaps_us"]),
        usage_outputs=data["usage_tokens"],
        instance=data["instance"],
        outcome=Outcome(data["outcome"]),
        error=data["error"],
    )
