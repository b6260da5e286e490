"""`llx logs`."""

import sys
import time

from llx.cli.failures import command
from llx.cli.parameters import ContextOption, FollowOption, ProcessArgument, TailOption
from llx.cli.session import Session

_POLL_S = 0.5
_CHUNK_BYTES = 262_144


@command
def logs(
    name: ProcessArgument,
    follow: FollowOption = False,
    tail: TailOption = 200,
    context: ContextOption = None,
) -> None:
    """Print the log of the head, a gateway or an instance.

    The head being gone, from the file on this machine.
    """
    from llx.errors import UnreachableError

    session = Session(context_name=context)
    try:
        with session.control() as control:
            part = control.logs(name, tail=tail, limit=_CHUNK_BYTES)
            _write(part.text)
            while follow:
                part = control.logs(name, offset=part.next_offset, limit=_CHUNK_BYTES)
                _write(part.text)
                if not part.text:
                    time.sleep(_POLL_S)
    except UnreachableError as error:
        _from_file(session, name, tail, error)


def _from_file(session: Session, name: str, lines: int, error: Exception) -> None:
    from llx.bootstrap.cluster_dir import PROCS
    from llx.bootstrap.local import tail
    from llx.errors import NotFoundError

    procs = session.context().state_dir / PROCS
    path = procs / name / "log"
    known = sorted(each.parent.name for each in procs.glob("*/log"))
    if name not in known:
        raise NotFoundError(f'no log of "{name}" (there are: {", ".join(known) or "none"})')
    session.err.print(f"({error.args[0]}: reading {path})", markup=False, soft_wrap=True)
    _write(tail(path, lines) + "\n")


def _write(text: str) -> None:
    sys.stdout.write(text)
    sys.stdout.flush()
