"""Live migration as pure state machines: the source's end and the target's.

    reserve → copy stage 0 … k → cut → copy the last stage, commit → ruling → release

Both machines are tables of (state, event) → states and commands; `docs/migration.md` draws them
from those tables. Whoever drives a machine carries out its commands and tells it what came of
them. The third party, the arbiter, is the gateway that holds the stream: `llx.core.streams`. Why it
is safe, step by step, is told in `docs/migration.md`.
"""

from llx.core.migration.values import Begun, Cut, Progress, Reservation, SourceRules

__all__ = ["Begun", "Cut", "Progress", "Reservation", "SourceRules"]
