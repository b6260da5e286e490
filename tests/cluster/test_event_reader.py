"""What is written to the trail is read back: filtered, in order, from where one was."""

import json
from pathlib import Path

import pytest

from llx.cluster.events.audit import AuditTrail
from llx.cluster.events.reader import EventFilter, read_events
from llx.errors import ConfigError


def numbers(path: Path, **wanted: object) -> list[object]:
    found = read_events(path, EventFilter(**wanted))  # type: ignore[arg-type]
    return [each.fields["number"] for each in found.events]


@pytest.fixture
def path(tmp_path: Path) -> Path:
    return tmp_path / "events.jsonl"


def test_no_trail_yet(path: Path) -> None:
    found = read_events(path, EventFilter())
    assert (found.events, found.num_found, found.cursor) == ([], 0, "")


def test_kinds_texts_times_and_limits(path: Path) -> None:
    trail = AuditTrail(path)
    for number, kind in enumerate(["host.lost", "instance.failed", "instances.x", "instance.up"]):
        trail.record(kind, user="ann" if number else "", number=number)
    assert numbers(path, kinds=["instance"]) == [1, 3]
    assert numbers(path, kinds=["instance.failed", "host"]) == [0, 1]
    assert numbers(path, match='"user": "ann"') == [1, 2, 3]
    found = read_events(path, EventFilter(limit=2))
    assert ([each.fields["number"] for each in found.events], found.num_found) == ([2, 3], 4)
    times = [each.at for each in read_events(path, EventFilter()).events]
    assert numbers(path, since=times[-1] + 1) == []
    assert numbers(path, since=times[0]) == [0, 1, 2, 3]


def test_one_reads_on_past_the_turning_of_the_file(path: Path) -> None:
    trail = AuditTrail(path, max_bytes=1000)
    seen: list[object] = []
    cursor = ""
    for number in range(100):
        trail.record("k", number=number, text="x" * 50)
        if number % 3 == 0:
            found = read_events(path, EventFilter(after=cursor))
            seen += [each.fields["number"] for each in found.events]
            cursor = found.cursor
    assert seen == list(range(100)), "each once, in order, over many files"
    assert path.with_name(f"{path.name}.1").exists()


def test_a_cursor_whose_file_is_gone_gives_what_is_left(path: Path) -> None:
    trail = AuditTrail(path, max_bytes=300)
    trail.record("k", number=-1)
    cursor = read_events(path, EventFilter()).cursor
    for number in range(50):
        trail.record("k", number=number, text="x" * 50)
    left = numbers(path, after=cursor)
    assert left == list(range(50))[-len(left) :]


def test_a_line_that_is_being_written_is_waited_for_and_nonsense_is_passed_over(
    path: Path,
) -> None:
    trail = AuditTrail(path)
    trail.record("k", number=0)
    with path.open("ab") as file:
        file.write(b'{"at": 1.0, "kind"\n{"at": 9.0, "kind": "k", ')
    found = read_events(path, EventFilter())
    assert [each.fields["number"] for each in found.events] == [0]
    with path.open("ab") as file:
        file.write(b'"user": "", "number": 1}\n')
    assert numbers(path, after=found.cursor) == [1]
    assert json.loads(path.read_bytes().splitlines()[-1])["number"] == 1


def test_a_cursor_that_is_none(path: Path) -> None:
    with pytest.raises(ConfigError, match='"x" is no cursor'):
        read_events(path, EventFilter(after="x"))
