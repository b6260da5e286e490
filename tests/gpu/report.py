"""What the GPU check finds: claims that hold or do not, and figures with their bounds."""

import json
import platform
import statistics
import sys
import time
from collections.abc import Callable, Sequence
from dataclasses import asdict, dataclass, field
from typing import Any


@dataclass(frozen=True)
class Claim:
    """One line of the report. `is_met` is None for a figure without a bound."""

    section: str
    name: str
    value: str
    bound: str
    is_met: bool | None


@dataclass
class Report:
    """Collects claims of the section that runs; a section that fails is a claim that is not met."""

    machine: dict[str, Any] = field(default_factory=dict)
    claims: list[Claim] = field(default_factory=list)
    section: str = ""

    def check(self, name: str, is_met: bool, detail: str = "") -> None:
        """A claim that is true or false."""
        self._add(name, detail or ("yes" if is_met else "no"), "", is_met)

    def measure(
        self,
        name: str,
        samples: float | Sequence[float],
        unit: str,
        *,
        at_most: float | None = None,
        at_least: float | None = None,
    ) -> float:
        """A figure; of several samples the median is judged and the range is told."""
        values = [samples] if isinstance(samples, (int, float)) else sorted(samples)
        median = statistics.median(values)
        value = f"{median:.4g} {unit}"
        if len(values) > 1:
            value += f" ({values[0]:.4g} to {values[-1]:.4g}, n={len(values)})"
        bounds = [f"<= {at_most:g}"] if at_most is not None else []
        bounds += [f">= {at_least:g}"] if at_least is not None else []
        is_met = None
        if bounds:
            is_met = (at_most is None or median <= at_most) and (
                at_least is None or median >= at_least
            )
        self._add(name, value, " ".join(bounds), is_met)
        return float(median)

    def run(self, name: str, section: Callable[["Report"], None]) -> None:
        """Run a section; whatever it raises is told and does not end the others."""
        self.section = name
        begun = time.monotonic()
        print(f"-- {name}", file=sys.stderr, flush=True)
        try:
            section(self)
        except Exception as error:  # noqa: BLE001 - the report's edge
            import traceback

            traceback.print_exc()
            self.check("ran to its end", False, f"{type(error).__name__}: {error}"[:300])
        self._add("took", f"{time.monotonic() - begun:.1f} s", "", None)

    def _add(self, name: str, value: str, bound: str, is_met: bool | None) -> None:
        claim = Claim(self.section, name, value, bound, is_met)
        self.claims.append(claim)
        word = {True: "ok", False: "NOT MET", None: ""}[is_met]
        print(f"{self.section:8} {name:58} {value:44} {bound:10} {word}", flush=True)

    @property
    def is_met(self) -> bool:
        """Whether nothing failed."""
        return all(claim.is_met is not False for claim in self.claims)

    def json(self) -> str:
        """All of it."""
        return json.dumps(
            {
                "date": time.strftime("%Y-%m-%d"),
                "python": platform.python_version(),
                "machine": self.machine,
                "claims": [asdict(claim) for claim in self.claims],
            },
            indent=1,
        )
