"""The audit trail of what happened: written, read back, and served."""
