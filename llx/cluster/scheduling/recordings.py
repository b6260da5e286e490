"""What the live scheduler was told and answered, in the state directory, to be replayed.

One file for each term (`llx.recording`), the last few kept, each of a bounded size:
``llx sim replay`` says whether this core decides the same.
"""

from pathlib import Path
from typing import Final

from llx.core.model import Term
from llx.errors import ConfigError
from llx.log import get_log
from llx.recording import Recorder

log = get_log(__name__)

_KEPT: Final = 3
_MAX_BYTES: Final = 64 << 20


def open_recording(folder: Path, term: Term, *, max_bytes: int = _MAX_BYTES) -> Recorder | None:
    """The recording of a term's scheduler; None if the disk refuses: it is not worth a head.

    Of former ones the last are kept.
    """
    try:
        folder.mkdir(mode=0o700, parents=True, exist_ok=True)
        for old in sorted(folder.glob("term-*.jsonl"), key=_term_of)[: -(_KEPT - 1)]:
            old.unlink()
        path = folder / f"term-{term}.jsonl"
        path.touch(mode=0o600)
        return Recorder(path, origin="cluster", max_bytes=max_bytes)
    except (OSError, ConfigError) as error:
        log.error("scheduler.not_recorded", error=error)
        return None


def _term_of(path: Path) -> int:
    number = path.stem.removeprefix("term-")
    return int(number) if number.isdigit() else 0
