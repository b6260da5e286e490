"""The llumlet: an instance's own end of every migration.

It drives the pure machines of `llx.core.migration`, one per migration and end, on a thread and an
asyncio loop of its own:

    endpoint's input thread ─ messages ─►┐               ┌─► endpoint: to peers here
    engine's core thread ─── answers ──► │ loop: machine │─► engine, between two steps
    KV transport's threads ─ arrivals ─► │   → commands  │─► transport
    links to targets ─────── messages ─►┘               └─► links to targets
"""

from llx.agent.llumlet.parts import EngineFacts
from llx.agent.llumlet.service import MigrationService

__all__ = ["EngineFacts", "MigrationService"]
