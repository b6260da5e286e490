"""The simulator: the real scheduler and the real migration machines, in virtual time."""
