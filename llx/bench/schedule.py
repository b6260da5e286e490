"""What is asked and when, all of it fixed before a run begins."""

from dataclasses import dataclass

from llx.bench.prompts import Segment


@dataclass(frozen=True, slots=True)
class Planned:
    """One request of a schedule.

    Attributes:
        number: From 0, in the order of arrival.
        at_s: When it is to be sent, from the run's beginning.
        segments: Its prompt.
        num_outputs: Tokens to ask for.
        priority_class: The class to ask for; "": the server's default.
    """

    number: int
    at_s: float
    segments: tuple[Segment, ...]
    num_outputs: int
    priority_class: str = ""

    @property
    def num_prompt(self) -> int:
        """Tokens of the prompt."""
        return sum(each.num_tokens for each in self.segments)
