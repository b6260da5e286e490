"""The head: the driver that keeps a cluster as its file says, and the control API over it."""
