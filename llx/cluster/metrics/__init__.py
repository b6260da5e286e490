"""The head's metrics: what it counts, what it knows, as a page for Prometheus."""
