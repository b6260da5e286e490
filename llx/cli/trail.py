"""Events in the audit trail, of verbs that change a cluster past its head."""

from collections.abc import Mapping
from typing import TYPE_CHECKING

from llx.cli.session import Session

if TYPE_CHECKING:
    from llx.settings import ClusterSettings


def note(session: Session, settings: "ClusterSettings", verb: str, text: str) -> None:
    """Leave an event with the head, if it answers; says so if it does not."""
    from llx.errors import LlxError

    try:
        with session.control_of(settings) as control:
            control.note(verb, text, user=session.user)
    except LlxError as error:
        message = f"(no event in the audit trail: {error.message})"
        session.err.print(message, markup=False, soft_wrap=True)


def note_results(
    session: Session,
    settings: "ClusterSettings",
    verb: str,
    what: str,
    results: Mapping[str, object],
) -> None:
    """Likewise, of work on several hosts, told where it changed something and where it failed.

    `results` are True or an error there. Where there is neither, there is nothing to tell.
    """
    from llx.errors import LlxError

    changed = [name for name, each in results.items() if each is True]
    failed = [name for name, each in results.items() if isinstance(each, LlxError)]
    parts = [
        f"{how} {', '.join(names)}"
        for how, names in (("on", changed), ("failed on", failed))
        if names
    ]
    if parts:
        note(session, settings, verb, f"{what}: {'; '.join(parts)}")
