"""Making what runs match what should run: the driver, and each of the things that it does."""
