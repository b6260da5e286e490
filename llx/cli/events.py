"""`llx events`: what has happened to a cluster, and what was done to it."""

import time
from collections.abc import Iterator
from typing import TYPE_CHECKING, Annotated

import typer

from llx.cli.failures import command
from llx.cli.parameters import ContextOption, OutputOption, parse_duration
from llx.cli.session import Session

if TYPE_CHECKING:
    from llx.api import EventList, EventStatus

_LOOK_EVERY_S = 0.5
_AGAIN_S = 2.0
_GIVE_UP_S = 120.0
"""A head that is started again, be it on another host, is back sooner."""


@command
def events(
    follow: Annotated[
        bool, typer.Option("-f", "--follow", help="Go on with what comes; as JSON, a line each.")
    ] = False,
    since: Annotated[
        float | None,
        typer.Option(
            parser=parse_duration, metavar="DURATION", help="Only of so long.", show_default=False
        ),
    ] = None,
    kind: Annotated[
        list[str] | None,
        typer.Option(
            metavar="KIND",
            help="`instance.failed`, or all of `instance`; several times: either.",
            show_default=False,
        ),
    ] = None,
    match: Annotated[str, typer.Option(metavar="TEXT", help="Only those that contain it.")] = "",
    limit: Annotated[int, typer.Option(min=1, max=100_000, help="The last so many.")] = 50,
    output: OutputOption = None,
    context: ContextOption = None,
) -> None:
    """Show what has happened and who did what, the newest last.

    Example: llx events -f --kind instance --kind migration
    """
    session = Session(context_name=context, output_name=output)
    if follow:  # one cluster to the end: which is meant by default may change
        session = Session(context_name=session.context().name, output_name=output)
    kinds = tuple(kind or ())
    with session.control_to_read() as control:
        first = control.events(last_s=since, kinds=kinds, match=match, limit=limit)
    if not follow:
        _show(session, first)
        return
    _show_line_by_line(session, first.events)
    for more in follow_events(session, first.cursor, kinds, match):
        _show_line_by_line(session, more)


def follow_events(
    session: Session,
    cursor: str,
    kinds: tuple[str, ...] = (),
    match: str = "",
    give_up_s: float = _GIVE_UP_S,
) -> "Iterator[list[EventStatus]]":
    """What comes, also past a head that goes away and comes back.

    Raises:
        NotFoundError: There is no such cluster any more.
        UnreachableError: It is down, or its head has not answered for `give_up_s`.
        RemoteError: It refuses a token that was just read, or answers what makes no sense.
    """
    from llx.errors import RemoteError, UnreachableError

    lost_at: float | None = None
    while True:
        settings, has_answered = session.cluster(), False
        try:
            with session.control_of(settings) as control:
                while True:
                    found = control.events(after=cursor, kinds=kinds, match=match, limit=100_000)
                    cursor, has_answered, lost_at = found.cursor, True, None
                    yield found.events
                    time.sleep(_LOOK_EVERY_S)
        except (UnreachableError, RemoteError) as error:
            if isinstance(error, RemoteError) and not has_answered:
                raise
            now = time.monotonic()
            if lost_at is None:
                lost_at = now
                session.err.print(f"{error.message}; reconnecting", markup=False, soft_wrap=True)
            elif now >= lost_at + give_up_s:
                raise UnreachableError(
                    f"no answer for {give_up_s:g} s: {error.message}",
                    remedy=error.remedy,
                    detail=error.detail,
                ) from None
            time.sleep(min(_AGAIN_S, lost_at + give_up_s - now))


def _show(session: Session, found: "EventList") -> None:
    from llx.cli.render import emit

    emit(
        session.out,
        session.output,
        found,
        [each.kind for each in found.events],
        lambda _: _show_line_by_line(session, found.events),
    )
    left_out = found.num_found - len(found.events)
    if left_out:
        session.err.print(f"{left_out} earlier ones are not shown (--limit)")


def _show_line_by_line(session: Session, found: "list[EventStatus]") -> None:
    from llx.choices import OutputFormat
    from llx.cli.render import as_json

    for each in found:
        match session.output:
            case OutputFormat.TABLE | OutputFormat.WIDE:
                session.out.print(event_line(each), markup=False, soft_wrap=True, highlight=False)
            case OutputFormat.NAME:
                session.out.file.write(f"{each.kind}\n")
            case OutputFormat.JSON | OutputFormat.YAML:
                session.out.file.write(as_json(each, is_line=True) + "\n")
    session.out.file.flush()


def event_line(event: "EventStatus") -> str:
    """Such as ``2026-11-28 14:05:26  instance.failed  name=m-0 reason="exit code 1"``."""
    at = time.strftime("%Y-%m-%d %H:%M:%S", time.localtime(event.at))
    told = [f"{key}={_word(value)}" for key, value in event.fields.items() if value is not None]
    by = f"  by {event.user}" if event.user else ""
    return f"{at}  {event.kind:<22} {' '.join(told)}{by}".rstrip()


def _word(value: str | float | bool) -> str:
    match value:
        case bool():
            return "yes" if value else "no"
        case float():
            return f"{value:g}"
        case _:
            text = " ".join(str(value).split())
            return f'"{text}"' if " " in text or not text else text
