"""The pure core: decisions as functions of events. No clock, no I/O, no asyncio, no third party."""
