"""Scripted measuring runs against a running cluster, over its public APIs alone."""
