"""A request's whole story, put together from the logs of all processes of a cluster. Pure.

Each host searches its own logs, and only the lines found travel. A line is of the request if one of
its fields *is* one of the request's ids. Those are learnt from the lines found: the gateway's first
one names all of them, others the migrations; so it is searched again until nothing new turns up.
"""

import json
import re
from collections.abc import Iterable, Sequence
from dataclasses import dataclass
from typing import Final

from llx.errors import ConfigError
from llx.log import quoted_field

MAX_LINES: Final = 2000
"""So many lines of one file, the first ones found, are taken."""
MAX_ROUNDS: Final = 4
MAX_ID_LENGTH: Final = 256
KEPT: Final = (
    "logs are kept of each process's present run and of the one before, 32 MiB of each, or the "
    "last 32 to 64 MiB of the present one"
)

# $1 procs, $2 pattern, $3 lines. What a full log was moved away to comes first. Without any log
# that is found, or any line, this is no failure.
SEARCH: Final = """cd "$1" 2>/dev/null || exit 0
for each in */log.1 */log; do
  [ -f "$each" ] && grep -a -n -H -m "$3" -E -e "$2" -- "$each"
done
true"""

_IDS: Final = frozenset({"request", "name", "migration"})
_ROW: Final = re.compile(r"([^/:]+)/(log|log\.1):(\d+):(\S+Z) (.*)")
_FIELD: Final = re.compile(r' ([a-z_]+)=("(?:[^"\\]|\\.)*"|\S+)')
_SPECIAL: Final = re.compile(r"([][\\.*^$+?(){}|])")
_MAX_IDS: Final = 64


@dataclass(frozen=True, slots=True, order=True)
class StoryLine:
    """One line of a log. Ordered by time; those of one moment, as each process wrote them.

    `at`: in UTC, as written; all are of the same form.
    """

    at: str
    host: str
    process: str
    is_present: bool
    """In the log that is written now; not in the one before."""
    number: int
    text: str

    def __str__(self) -> str:
        return f"{self.at} {self.host} {self.process} {self.text}"


def check_id(given: str) -> None:
    """An id that a request can have.

    Raises:
        ConfigError: It is none.
    """
    if not given.strip() or len(given) > MAX_ID_LENGTH or not given.isprintable():
        raise ConfigError(
            f"--request takes an id of at most {MAX_ID_LENGTH} printable characters",
            remedy="llx req ls",
        )


def pattern_of(ids: Iterable[str]) -> str:
    """A POSIX extended expression that finds the lines with a field of one of these values."""
    forms = {form for each in ids for form in (each, quoted_field(each))}
    escaped = "|".join(_SPECIAL.sub(r"\\\1", each) for each in sorted(forms))
    return f" [a-z_]+=({escaped})( |$)"


def lines_of(host: str, output: str) -> list[StoryLine]:
    """What `SEARCH` has found on a host; what has no time of its own is left out."""
    rows = (_ROW.fullmatch(each) for each in output.splitlines())
    return [
        StoryLine(row[4], host, row[1], row[2] == "log", int(row[3]), row[5])
        for row in rows
        if row is not None
    ]


def ids_in(lines: Iterable[StoryLine], known: Sequence[str]) -> list[str]:
    """The ids that the request goes by, according to these lines, after those known already."""
    found = dict.fromkeys(known)
    for line in lines:
        for key, value in _FIELD.findall(f" {line.text}"):
            plain = json.loads(value) if value.startswith('"') else value
            if key in _IDS and plain not in {"-", ""}:
                found.setdefault(plain)
    return list(found)[:_MAX_IDS]
