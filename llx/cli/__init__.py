"""The command line: parse, call one function, render. One file per noun; no logic of its own.

Imports at the top of these modules are typer and the standard library only; the rest is imported
inside the commands, so that `llx --help` is instant.
"""
