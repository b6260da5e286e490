"""The live driver of the scheduler core; read it side by side with `llx.sim.cluster`.

`live` owns the core's `Scheduler`, feeds it what gateways, instances and the fleet say, and carries
out what it commands. `members` and `configs` say what the fleet is in the core's words. Decisions
are the core's alone.
"""
