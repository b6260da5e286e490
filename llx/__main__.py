"""The way in: `python -m llx`, and the `llx` command.

Loading llx takes a while in which Ctrl-C may come: that ends it in one line, as at any other time.
"""

import os
import sys


def main() -> None:
    """Run the command line."""
    try:
        from llx.cli.main import run

        run()
    except KeyboardInterrupt:
        sys.stderr.write("llx: interrupted\n")
        os._exit(130)  # an exit in order may end by SIGINT instead: see `llx.cli.main.run`


if __name__ == "__main__":
    main()
