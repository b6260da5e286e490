"""``python -m llx``: the same as the ``llx`` command."""

from llx.cli.main import run

if __name__ == "__main__":
    run()
