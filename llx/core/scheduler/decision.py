"""Why something was decided, as data. What explains a decision later reads this, not a log."""

from llx.core.fixed import fixed
from llx.core.model import InstanceId


@fixed
class Option:
    """An instance and the figure that it was compared by, in the rule's own unit."""

    instance: InstanceId
    figure: float


@fixed
class Decision:
    """What a rule chose, and from what.

    Attributes:
        rule: The name of the policy or rule.
        unit: Of its figures: "freeness", "load", …
        chosen: What it took; None if nothing qualified.
        next_best: What it would have taken otherwise, of those that it looked at.
        num_instances: In the pool.
        num_considered: Looked at, one by one.
        left_out: How many were not eligible, by reason.
        tie_break: What decided between equal figures; empty if none were equal.
        facts: Further figures that mattered, by name.
    """

    rule: str
    unit: str
    chosen: Option | None
    next_best: Option | None = None
    num_instances: int = 0
    num_considered: int = 0
    left_out: tuple[tuple[str, int], ...] = ()
    tie_break: str = ""
    facts: tuple[tuple[str, float | str], ...] = ()

    def __str__(self) -> str:
        """One line, for people."""
        parts = [self.rule]
        if self.chosen:
            parts.append(f"{self.chosen.instance} with {self.unit} {_number(self.chosen.figure)}")
        if self.next_best:
            parts.append(f"then {self.next_best.instance} with {_number(self.next_best.figure)}")
        if self.num_considered:
            parts.append(f"looked at {self.num_considered} of {self.num_instances}")
        parts.extend(f"{count} {reason}" for reason, count in self.left_out)
        if self.tie_break:
            parts.append(f"tie: {self.tie_break}")
        parts.extend(f"{name} {_number(value)}" for name, value in self.facts)
        return ", ".join(parts)


def _number(value: float | str) -> str:
    return value if isinstance(value, str) else f"{value:.6g}"
