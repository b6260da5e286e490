"""The command line that is really sent for a command: bounded in time, and tied to the connection.

    timeout -k 5 N sh -c '… | COMMAND'
                          └ hands on the input, then holds on to ours: when that ends, the
                            connection is gone, and within 5 s so is the whole process group

What made itself a session of its own (a shim) is not in that group and stays.
Pure text for a POSIX shell; needs coreutils there.
"""

import math
import shlex
from collections.abc import Mapping, Sequence

from llx.bootstrap.shell import quoted

KILL_AFTER_S = 5
"""How long a command may take to heed SIGTERM."""

# $PPID is `timeout`. It is gone once the command has ended: then nothing is left to be killed. Its
# number cannot be another's, as long as this process is in the group of that number.
_LIFELINE = "exec >/dev/null; cat <&3; kill -0 $PPID && kill 0"


def tied(
    argv: Sequence[str], environment: Mapping[str, str] | None, *, timeout_s: float, num_input: int
) -> str:
    """The line for `argv`, which is to read `num_input` bytes from the channel, then its end."""
    feed = f"head -c {num_input} <&3; {_LIFELINE}" if num_input else _LIFELINE
    # The trap keeps the shell, and thereby `timeout`, until what ignores SIGTERM has been killed.
    # PYTHONSAFEPATH: what lies in the home directory is not to be taken for a module.
    script = (
        f"trap : TERM; export PYTHONSAFEPATH=1; exec 3<&0; {{ {{ {feed}; }} 2>/dev/null & }} | "
        f"{{ exec 3<&-; exec {quoted(argv, environment)}; }}"
    )
    limit = str(max(1, math.ceil(timeout_s)))
    return "exec " + shlex.join(["timeout", "-k", str(KILL_AFTER_S), limit, "sh", "-c", script])
