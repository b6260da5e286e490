"""The scheduler: events in, commands out. Pure: it is what runs live and what is simulated."""
